"""Which way to int8 keeps the quality: dynamic, static, SmoothQuant, or training with the rounding in it?

Parent: `configs/movie_sentiment.py`, MiniLM on film reviews, 80 steps. Weights have one scale an output channel in
all of them; inputs have one a token ("dynamic") or one a layer ("static", by mean squared error), with or without
SmoothQuant's migration (Xiao et al. 2022, arXiv:2211.10438), and two are trained aware of it.
Cost: 18 runs of a minute and a half on two CPU cores.

How to read it: `int8.accuracy` on 1,594 test reviews, beside that of the float model that it is made from, how many
labels are the same, and the speed against float32, which other work on the machine disturbs.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Bars, Pareto
from lepton_jax.sweeps import Variant, case, chain, product, seeds

PARENT = "configs/movie_sentiment.py"
METRICS = ("int8.accuracy", "finetune.accuracy", "int8.agreement", "int8.speedup")
FIGURES = (Bars("int8.accuracy"), Pareto("int8.speedup", "int8.accuracy"))
ALIKE = {
    "train.seeds": 1, "train.steps": 80, "optim.warmup_steps": 8, "evaluate.every": 20, "checkpoint.every": 20,
    "data.out_of_domain": "", "evaluate.baseline": False, "infer.devices": 1,
}  # fmt: skip


def variants() -> Sequence[Variant]:
    """Returns six recipes, three seeds each."""
    static = {"compress.inputs": "mse"}
    forms = chain(
        case("dynamic"),
        case("dynamic, smoothed", {"compress.smooth": 0.5}),
        case("static", static),
        case("static, smoothed", {**static, "compress.smooth": 0.5}),
        case("dynamic, aware", {"compress.aware": True}),
        case("static, aware", {**static, "compress.aware": True}),
    )
    return product(forms, seeds(3))
