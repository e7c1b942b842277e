"""How does the loss fall with parameters and with tokens?

Parent: `configs/pretrain.py:nano` on the English text of the quickstart. Five sizes of one shape (heads of 32, a
gated feed-forward) by three budgets of tokens, which every size sees in batches of 1,024: so few tokens teach more in
many small steps. The rate falls with the width, as its best value does.
Cost: 45 runs, from 20 seconds to two minutes on two CPU cores; the largest model has over thirty times the
parameters of the smallest one, embeddings not counted.

How to read it: held-out masked-LM loss in nats. The fit is L = E + A/N^a + B/D^b (Hoffmann et al. 2022,
arXiv:2203.15556), N parameters without embeddings, D tokens of training; its interval is of a bootstrap over runs.
The text has 1.5 million tokens, more than the largest budget; the constants are of this text and vocabulary.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Curves, Scaling
from lepton_jax.sweeps import Variant, case, product, seeds

PARENT = "configs/pretrain.py:nano"
METRICS = ("pretrain.validation_loss",)
FIGURES = (
    Scaling("pretrain.validation_loss", "pretrain.layer_parameters", "train.steps*train.batch_size*data.max_length"),
    Curves("validation/loss"),
)

TEXT = "tfds:movie_sentiment:train,tfds:opinion_snippets:train,tfds:news_articles:train[:30%]"
ALIKE = {
    "data.train": TEXT, "data.validation": "tfds:movie_sentiment:validation", "data.max_length": 64,
    "data.tokenizer_size": 8000, "model.max_positions": 64, "model.unroll": 0, "train.batch_size": 16,
}  # fmt: skip
SIZES = {(64, 1): 4e-3, (96, 2): 3e-3, (128, 3): 2e-3, (160, 3): 1.7e-3, (192, 4): 1.4e-3}  # (width, layers): rate
STEPS = (300, 600, 1200)


def variants() -> Sequence[Variant]:
    """Returns sizes by budgets, three seeds each."""
    sizes = [
        case(
            f"{width} wide, {layers} deep",
            {
                "model.hidden_size": width, "model.num_layers": layers, "model.num_heads": width // 32,
                "model.intermediate_size": -(-width * 8 // 3 // 32) * 32, "train.learning_rate": rate,
            },
        )[0]
        for (width, layers), rate in SIZES.items()
    ]  # fmt: skip
    budgets = [
        case(
            f"{steps * 16 * 64 / 1e6:.1f} M tokens",
            {
                "train.steps": steps, "optim.warmup_steps": steps // 10, "evaluate.every": steps // 5,
                "checkpoint.every": steps,
            },
        )[0]
        for steps in STEPS
    ]  # fmt: skip
    return product(sizes, budgets, seeds(3))
