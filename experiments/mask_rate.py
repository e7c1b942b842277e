"""How much of the text should be masked?

Parent: `configs/quickstart.py`, without its run from random weights: pretraining with 15, 20, 30 or 40% of the tokens
masked, and the same fine-tuning for the sentiment of film reviews after each. BERT masks 15%; Wettig et al. 2022
(arXiv:2202.08005) find 40% better for large models, and ModernBERT has 30%.
Cost: 12 runs of two minutes or three on two CPU cores.

How to read it: accuracy on 1,594 test reviews after fine-tuning. The loss of pretraining is of no use here: the more
is masked, the harder the task.
"""

from collections.abc import Sequence

from lepton_jax.results.figures import Bars
from lepton_jax.sweeps import Variant, product, seeds, vary

PARENT = "configs/quickstart.py"
METRICS = ("finetune.accuracy",)
FIGURES = (Bars("finetune.accuracy"),)
ALIKE = {"from_scratch": False, "finetune.compress.method": "none", "finetune.evaluate.baseline": False}


def variants() -> Sequence[Variant]:
    """Returns four rates, three seeds each."""
    return product(vary("pretrain.task.mask_rate", 0.15, 0.2, 0.3, 0.4), seeds(3))
