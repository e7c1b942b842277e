"""GPT-2's architecture (Radford et al. 2019), a causal language model, with held-out perplexity.

    python -m lepton_jax.main --config=configs/gpt2.py --workdir=runs/gpt2 --config.data.train='text:corpus/*.txt'

ARG is a size: `configs/gpt2.py:tiny` (the default), `configs/gpt2.py:small`, `configs/gpt2.py:base` (GPT-2's smallest),
`configs/gpt2.py:large` (its medium). What its paper leaves open, optimizer and schedule, is GPT-3's (Brown et al. 2020,
arXiv:2005.14165, appendix B). Each document is a context of its own, and its last token predicts nothing; perplexity is
exp of the mean loss over the held-out tokens, so it compares only models with one vocabulary. `hub.save` writes the
result as a `GPT2LMHeadModel`.

Hardware, time, number: `tiny` is for two CPU cores in float32. There 60 steps of 16 rows of the quickstart's English
text, with 6 of warm-up, reach a held-out perplexity of 1,011 over a vocabulary of 8,192 in 44 seconds.
`base` and `large` are for GPUs and TPUs with `--config.model.dtype=bfloat16`; their shapes and numbers of parameters
are tested, but no training of them has been measured.
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import Scale, at_scale

SCALES = {
    "tiny": Scale(128, 64, 1, 10_000, 1e-3, 8192),
    "small": Scale(256, 128, 1, 50_000, 1e-3, 8192),
    "base": Scale(1024, 512, 16, 100_000, 6e-4, 50_257),
    "large": Scale(1024, 512, 32, 100_000, 3e-4, 50_257),
}


def get_config(arg: str = "tiny") -> ConfigDict:
    """Returns the recipe at a named size."""
    config, scale = at_scale("gpt2.py", arg or "tiny", SCALES)
    config.model.update(
        causal=True, positions="learned", max_positions=1024, embedding_norm=False, norm_epsilon=1e-5,
        activation="gelu_tanh", head_transform=False, output_bias=False, pooling="last", pooler="none", dropout=0.1,
    )  # fmt: skip
    config.task.name = "causal_lm"
    config.data.lowercase = False
    config.optim.update(schedule="cosine", warmup_steps=scale.steps // 50, beta2=0.95, weight_decay=0.1)
    return config
