"""Which mesh axes shard each parameter; the axes of a rule are aligned with the last axes of the array.

Megatron's layout (Shoeybi et al. 2019, arXiv:1909.08053): the first matrix of a pair is split by columns over
`tensor`, the second by rows, the embedding table by vocabulary. `fsdp` takes the other axis of each matrix.
"""

from __future__ import annotations

from lepton_jax.core.sharding import Rules

_MATRIX = r"/kernel(/\w+)?$"  # a float array, or the arrays of a Weight
RULES: Rules = (
    (r"(^|/)embeddings/token(/\w+)?$", ("tensor", "fsdp")),
    (r"(^|/)embeddings/(position|type)(/\w+)?$", (None, "fsdp")),
    (rf"(^|/)embeddings/project{_MATRIX}", ("fsdp", None)),
    (r"(^|/)relative/table$", (None, "fsdp")),
    (rf"(query|key|value|up|gate){_MATRIX}", ("fsdp", "tensor")),
    (r"(query|key|value|up|gate)/bias$", ("tensor",)),
    (rf"(attention/output|down){_MATRIX}", ("tensor", "fsdp")),
    (rf"(dense|head/output){_MATRIX}", ("fsdp", None)),
    (rf"head{_MATRIX}", ("fsdp", "tensor")),
    (r"head/bias$", ("tensor",)),
    (r"(^|/)\w*norm/(scale|bias)$", (None,)),
    (r"(output|down|dense|project)/bias$", (None,)),
    (r"/ns_coeffs$", (None,)),  # the one array of an optimizer's state that is no parameter's: three numbers of Muon
)
