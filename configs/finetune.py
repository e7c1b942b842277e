"""Fine-tuning a classifier on labelled files of your own, from a pretrained run, and its int8 model.

    python -m lepton_jax.main --config=configs/finetune.py --workdir=runs/finetune \\
        --config.model.init=runs/pretrain \\
        --config.data.train=jsonl:train.jsonl --config.data.test=jsonl:test.jsonl \\
        --config.data.text=text --config.data.label=label

Sources are `jsonl:`, `csv:`, `tsv:` with named columns, or `tfds:NAME`. Where validation is not given, a seeded share
of train is split off, so that no text is in both. Without `model.init` the model starts from random weights. For
numbers instead of classes set `task.name=regression` and `checkpoint.best=loss`.

A thousand steps of a `nano` model at length 128 take about five minutes on a laptop's CPU (2 cores, float32).
"""

from typing import Any

from ml_collections import ConfigDict

from lepton_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    config: Any = default_config("finetune")
    config.task.name = "classification"
    config.model.dropout = 0.1
    config.train.update(steps=1000, batch_size=32, learning_rate=2e-4)
    config.optim.warmup_steps = 100
    config.checkpoint.update(every=200, best="accuracy")
    config.compress.method = "int8"
    return config
