"""Is Muon better than AdamW for masked LM?

Parent: `configs/pretrain.py:nano` on the English text of the quickstart. Both optimisers at four learning rates
each, for one rate is no fair comparison; all else is alike. Muon's updates are scaled to the size of AdamW's
(arXiv:2502.16982), so that the same rates are sensible for both.
Cost: 24 runs of about a minute on two CPU cores; a step of Muon takes longer.

How to read it: held-out masked-LM loss after 1,000 steps of 16 x 64 tokens, in nats; compare the best rate of each.
The literature has Muon ahead for decoders; of masked LM little is published.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Curves, Lines
from lepton_jax.sweeps import Variant, product, seeds, vary

PARENT = "configs/pretrain.py:nano"
METRICS = ("pretrain.validation_loss", "pretrain.masked_accuracy")
FIGURES = (
    Lines("train.learning_rate", "pretrain.validation_loss", by="optim.name", log_x=True),
    Curves("validation/loss"),
)

TEXT = "tfds:movie_sentiment:train,tfds:opinion_snippets:train,tfds:news_articles:train[:30%]"
ALIKE = {
    "data.train": TEXT, "data.validation": "tfds:movie_sentiment:validation", "data.max_length": 64,
    "data.tokenizer_size": 8000, "model.max_positions": 64, "model.unroll": 0, "train.steps": 1000,
    "train.batch_size": 16, "optim.warmup_steps": 100, "optim.momentum": 0.95, "evaluate.every": 200,
    "checkpoint.every": 1000,
}  # fmt: skip


def variants() -> Sequence[Variant]:
    """Returns two optimisers by four rates, three seeds each."""
    rates = vary("train.learning_rate", 3e-4, 1e-3, 3e-3, 1e-2)
    return product(vary("optim.name", "adamw", "muon"), rates, seeds(3))
