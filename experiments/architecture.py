"""Which parts of a modern encoder pay for themselves at a small size?

Parent: `configs/pretrain.py:nano` on the English text of the quickstart: norms before the layers, rotary positions, a
gated feed-forward, no biases. Each variant takes one of them back: norms after the layers (as in BERT), learned
positions, or a plain GELU feed-forward with as many parameters.
Cost: 12 runs of about two minutes on two CPU cores.

How to read it: held-out masked-LM loss after 1,000 steps of 32 x 64 tokens, in nats; all predict the same positions
of the same rows.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Bars, Curves
from lepton_jax.sweeps import Variant, case, chain, product, seeds

PARENT = "configs/pretrain.py:nano"
METRICS = ("pretrain.validation_loss", "pretrain.masked_accuracy")
FIGURES = (Curves("validation/loss"), Bars("pretrain.validation_loss"))

TEXT = "tfds:movie_sentiment:train,tfds:opinion_snippets:train,tfds:news_articles:train[:30%]"
ALIKE = {
    "data.train": TEXT, "data.validation": "tfds:movie_sentiment:validation", "data.max_length": 64,
    "data.tokenizer_size": 8000, "model.max_positions": 64, "model.unroll": 0, "train.steps": 1000,
    "train.batch_size": 32, "train.learning_rate": 2e-3, "optim.warmup_steps": 100, "evaluate.every": 200,
    "checkpoint.every": 1000,
}  # fmt: skip


def variants() -> Sequence[Variant]:
    """Returns the parent and one change at a time, three seeds each."""
    changes = chain(
        case("all modern"),
        case("post-norm", {"model.norm_position": "post"}),
        case("learned positions", {"model.positions": "learned"}),
        case("GELU feed-forward", {"model.gated": False, "model.intermediate_size": 576}),
    )
    return product(changes, seeds(3))
