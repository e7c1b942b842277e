"""Does it matter whether the documents of a packed row see each other?

Parent: `configs/quickstart.py`, without its run from random weights, with rows of 128 tokens, which hold four
reviews or so, or a piece of a news article. Documents are isolated, or each token attends to the whole row and
positions run on through it. NeoBERT (Le Breton et al. 2025, arXiv:2502.19587) lost 2.8 points of GLUE without
isolation.
Cost: 6 runs of about four minutes on two CPU cores.

How to read it: accuracy on 1,594 test reviews after the same fine-tuning. The losses of pretraining do not compare:
text from other documents is part of what they are given.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Bars
from lepton_jax.sweeps import Variant, case, product, seeds

PARENT = "configs/quickstart.py"
METRICS = ("finetune.accuracy",)
FIGURES = (Bars("finetune.accuracy"),)
ALIKE = {
    "from_scratch": False, "finetune.compress.method": "none", "finetune.evaluate.baseline": False,
    "pretrain.data.max_length": 128, "pretrain.model.max_positions": 128, "pretrain.train.batch_size": 16,
}  # fmt: skip


def variants() -> Sequence[Variant]:
    """Returns both, three seeds each."""
    both = (*case("isolated"), *case("not isolated", {"pretrain.data.isolate": False}))
    return product(both, seeds(3))
