"""Names in English tweets with MiniLM, or in Chinese news with the Chinese encoder.

    python -m lepton_jax.main --config=configs/entities.py --workdir=runs/entities
    python -m lepton_jax.main --config=configs/entities.py:zh --workdir=runs/entities_zh

Ten types in 1,573 training tweets; persons, places, organisations and others in 16,235 lines of the People's Daily
(`:zh`, which starts from `runs/chinese_encoder`, made by `configs/chinese_encoder.py`). Measured is the F1 of exact
spans. Three seeds: about ten minutes on two CPU cores, `:zh` fifteen; F1 41% and 74%, of words and their neighbours
34% and 64%.
"""

from ml_collections import ConfigDict

from lepton_jax.core.errors import UserError
from lepton_jax.recipes import MINILM, tuned


def get_config(arg: str = "en") -> ConfigDict:
    """Returns the recipe in English, or with the argument "zh" in Chinese."""
    language = arg or "en"
    if language not in ("en", "zh"):
        raise UserError(f"configs/entities.py:{arg}: unknown language; known: en, zh")
    if language == "zh":
        config = tuned("token_classification", "runs/chinese_encoder", length=128, steps=1000, rate=1e-3)
        config.data.update(train="tfds:chinese_entities", label="entities")
    else:
        config = tuned("token_classification", MINILM, length=64, steps=250, rate=2e-4)
        config.data.update(train="tfds:tweet_entities", text="tokens", label="tags")
    return config
