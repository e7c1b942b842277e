"""Masked-LM pretraining as it is done now, after ModernBERT (Warner et al. 2024, arXiv:2412.13663).

    python -m lepton_jax.main --config=configs/modern.py --workdir=runs/modern --config.data.train='text:corpus/*.txt'

ARG is a size: `configs/modern.py:tiny` (the default), `configs/modern.py:small`, `configs/modern.py:base`,
`configs/modern.py:large`. What differs from `configs/bert.py`: norms before the layers, no biases, rotary positions, a
gated feed-forward of the same number of parameters, layers that see 64 tokens to each side but for every third, no
dropout, 30% of the tokens predicted, a batch that grows in the first tenth of the steps, and a rate that is constant
until the last fifth. `--config.optim.name=muon` gives the matrices of the layers to Muon. `hub.save` writes the result
as a `ModernBertForMaskedLM`.

Hardware, time, number: `tiny` is for two CPU cores in float32. There 290 steps of up to 32 rows of the quickstart's
English text, with 15% predicted as in BERT, reach a held-out loss of 6.31 in 150 seconds, where BERT's recipe has
6.85 (`experiments/modern_pays.py --seconds=150`). `base` and `large` are for GPUs and TPUs with
`--config.model.dtype=bfloat16`; their shapes and numbers of parameters are tested, but no training of them has been
measured.
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import Scale, at_scale

SCALES = {
    "tiny": Scale(128, 64, 1, 10_000, 2e-3, 8192),
    "small": Scale(128, 256, 1, 50_000, 1e-3, 8192),
    "base": Scale(512, 1024, 16, 100_000, 8e-4, 30_528),
    "large": Scale(512, 1024, 32, 100_000, 5e-4, 30_528),
}


def get_config(arg: str = "tiny") -> ConfigDict:
    """Returns the recipe at a named size."""
    config, scale = at_scale("modern.py", arg or "tiny", SCALES, gated=True)
    config.model.update(gated=True, bias=False, norm_bias=False, head_bias=False, norm_epsilon=1e-5)
    config.model.update(first_norm=False, global_every=3, local_window=64, pooler="transform", pooler_activation="gelu")
    config.task.mask_rate = 0.3
    config.train.ramp_share = 0.1
    config.optim.update(
        schedule="wsd", warmup_steps=scale.steps // 50, decay_share=0.2, momentum=0.95, weight_decay=0.01
    )
    return config
