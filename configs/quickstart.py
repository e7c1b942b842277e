"""From raw text to a served int8 classifier, in minutes on two CPU cores.

    python -m lepton_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
    python -m lepton_jax.main --config=configs/quickstart.py:zh --workdir=runs/quickstart_zh

Trains a SentencePiece vocabulary and a small encoder with masked LM on reviews, editorials, tweets and news (zh: on
reviews of shops and hotels), then fine-tunes it for the sentiment of reviews, and the same model from random weights
beside it, and makes it int8. The held-out texts are in neither training.
"""

from typing import Any

from ml_collections import ConfigDict

from lepton_jax.config import OWN_MODEL_FIELDS, default_config
from lepton_jax.core.errors import UserError

SOURCES = {  # language: (text to pretrain on, its validation text, labelled set, sentences to predict at the end)
    "en": (
        "tfds:movie_sentiment:train,tfds:opinion_snippets:train,tfds:news_articles:train[:30%]",
        "tfds:movie_sentiment:validation",
        "tfds:movie_sentiment",
        (
            "A warm and funny film, with a heart as big as its cast.",
            "An unforgettable performance makes this the best drama of the year.",
            "Dull, predictable and far too long.",
            "The jokes fall flat and the plot makes no sense.",
        ),
    ),
    "zh": (
        "tfds:chinese_sentiment:train",
        "tfds:chinese_sentiment:validation",
        "tfds:chinese_sentiment",
        (
            "房间很干净，服务员非常热情，下次还会来。",
            "书的内容很好，值得一读。",
            "质量太差了，用了两天就坏了。",
            "隔音不好，早餐也很难吃，非常失望。",
        ),
    ),
}

# What else differs: chosen by the accuracy after fine-tuning (experiments/pretraining_pays.py), not by the loss.
RECIPES = {
    "en": {"steps": 1500, "mask_rate": 0.3, "weight_decay": 1.0, "finetune_rate": 5e-4},
    "zh": {"steps": 2000, "mask_rate": 0.15, "weight_decay": 0.01, "finetune_rate": 1e-3},
}


def get_config(arg: str = "en") -> ConfigDict:
    """Returns the chain in English, or with the argument "zh" in Chinese."""
    language = arg or "en"
    if language not in SOURCES:
        raise UserError(f"configs/quickstart.py:{arg}: unknown language; known: {', '.join(SOURCES)}")
    corpus, validation, labelled, texts = SOURCES[language]
    recipe = RECIPES[language]
    config: Any = default_config("quickstart")
    pretrain, finetune = config.pretrain, config.finetune

    pretrain.data.update(train=corpus, validation=validation, max_length=64, tokenizer_size=8000)
    pretrain.model.update(hidden_size=128, num_layers=2, num_heads=4, intermediate_size=512, max_positions=64, unroll=0)
    pretrain.train.update(steps=recipe["steps"], batch_size=32, learning_rate=2e-3, log_every=50)
    pretrain.optim.update(warmup_steps=100, weight_decay=recipe["weight_decay"])
    pretrain.task.mask_rate = recipe["mask_rate"]
    pretrain.evaluate.every = pretrain.checkpoint.every = 500

    for name in pretrain.model:  # one architecture: overriding it in `pretrain` overrides it in both
        if name not in OWN_MODEL_FIELDS:
            finetune.model[name] = pretrain.model.get_ref(name)
    finetune.task.name = "classification"
    finetune.data.update(train=labelled, max_length=64, batching="bucketed")
    finetune.model.update(unroll=0, dropout=0.1)
    finetune.train.update(steps=300, batch_size=32, learning_rate=recipe["finetune_rate"], log_every=10)
    finetune.optim.warmup_steps = 30
    finetune.evaluate.every = finetune.checkpoint.every = 50
    finetune.checkpoint.best = "accuracy"
    finetune.evaluate.baseline = True
    finetune.compress.method = "int8"
    finetune.infer.update(lengths=(16, 32, 64), texts=texts)
    return config
