"""A small Chinese encoder of characters, from reviews and newspaper text, to start other recipes from.

    python -m lepton_jax.main --config=configs/chinese_encoder.py --workdir=runs/chinese_encoder

4 layers of 192; a piece a character, so that a name may begin and end anywhere. 2.7 million characters of training
text, held-out texts of the labelled sets left out; about fifteen minutes on two CPU cores. Of the masked pieces it
finds 38%.
"""

from typing import Any

from ml_collections import ConfigDict

from lepton_jax.config import default_config

SOURCES = ("chinese_sentiment", "chinese_entities")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    config: Any = default_config("pretrain")
    config.data.update(
        train=",".join(f"tfds:{name}:train" for name in SOURCES),
        validation=",".join(f"tfds:{name}:validation" for name in SOURCES),
        tokenizer="char",
        tokenizer_size=6000,
        max_length=128,
    )
    config.model.update(
        hidden_size=192, num_layers=4, num_heads=4, intermediate_size=768, max_positions=256, unroll=0, bias=False
    )
    config.task.mask_rate = 0.2
    config.train.update(steps=1500, batch_size=24, learning_rate=2e-3, log_every=50)
    config.optim.update(warmup_steps=100, weight_decay=0.1)
    config.evaluate.every = config.checkpoint.every = 500
    return config
