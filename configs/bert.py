"""BERT's recipe of 2018 (Devlin et al., arXiv:1810.04805), without its sentence pairs: for comparison.

    python -m lepton_jax.main --config=configs/bert.py --workdir=runs/bert --config.data.train='text:corpus/*.txt'

ARG is a size: `configs/bert.py:tiny` (the default), `configs/bert.py:small`, `configs/bert.py:base`,
`configs/bert.py:large`. Post-norm, learned positions, biases everywhere, dropout of 0.1, 15% of the tokens predicted,
AdamW with a linear warm-up and fall. `hub.save` writes the result as a `BertForMaskedLM`.

Hardware, time, number: `tiny` is for two CPU cores in float32. There 217 steps of 32 rows of the quickstart's English
text, in 150 seconds, reach a held-out loss of 6.85, little less than the frequencies of tokens give
(`experiments/modern_pays.py --seconds=150`). `base` and `large` are for GPUs and TPUs with
`--config.model.dtype=bfloat16`; their shapes and numbers of parameters are tested, but no training of them has been
measured.
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import Scale, at_scale

# `base` and `large` are the paper's.
SCALES = {
    "tiny": Scale(128, 64, 1, 10_000, 1e-3, 8192),
    "small": Scale(128, 256, 1, 50_000, 5e-4, 8192),
    "base": Scale(512, 256, 4, 1_000_000, 1e-4, 30_528),
    "large": Scale(512, 256, 8, 1_000_000, 1e-4, 30_528),
}


def get_config(arg: str = "tiny") -> ConfigDict:
    """Returns the recipe at a named size."""
    config, scale = at_scale("bert.py", arg or "tiny", SCALES)
    config.model.update(
        norm_position="post", norm_epsilon=1e-12, positions="learned", type_vocab_size=2, pooling="cls", dropout=0.1
    )
    config.optim.update(
        schedule="linear", warmup_steps=scale.steps // 100, beta2=0.999, epsilon=1e-6, weight_decay=0.01
    )
    return config
