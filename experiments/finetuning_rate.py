"""Which learning rate, warm-up and layer decay suit the fine-tuning of MiniLM?

Parent: `configs/movie_sentiment.py`, MiniLM on film reviews, 150 steps. A search: optuna proposes values, and trials
that are behind the median of the others at an evaluation are given up.
Cost: a minute and a half a trial on two CPU cores, and less for those that are given up.

How to read it: trials are judged by the accuracy on 548 validation reviews, where one and a half points are one
standard error: what is close to the best is as good. `finetune.accuracy` is that on the test reviews, which chooses
nothing.
"""

from collections.abc import Mapping

from lepton_jax.results.figures import Lines
from lepton_jax.sweeps.searching import Values, choice, log_uniform, uniform

PARENT = "configs/movie_sentiment.py"
METRICS = ("finetune.accuracy",)
FIGURES = (Lines("train.learning_rate", "finetune.accuracy", log_x=True),)
ALIKE = {
    "train.seeds": 1, "train.steps": 150, "optim.warmup_steps": 15, "evaluate.every": 25, "checkpoint.every": 25,
    "data.out_of_domain": "", "evaluate.baseline": False, "compress.method": "none",
}  # fmt: skip


def space() -> Mapping[str, Values]:
    """Returns three fields, and where their values come from."""
    return {
        "train.learning_rate": log_uniform(1e-5, 1e-3),
        "optim.layer_decay": uniform(0.5, 1.0),
        "train.batch_size": choice(16, 32),
    }
