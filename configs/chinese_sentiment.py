"""The Chinese encoder on reviews of books, hotels, computers and appliances, positive or negative.

    python -m lepton_jax.main --config=configs/chinese_sentiment.py --workdir=runs/chinese_sentiment

Starts from `runs/chinese_encoder`, which `configs/chinese_encoder.py` makes. 13,937 training reviews; three seeds:
about fifteen minutes on two CPU cores; 84% are right, of TF-IDF 85%.
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import tuned


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    config = tuned("classification", "runs/chinese_encoder", length=128, steps=870, rate=5e-4)
    config.data.train = "tfds:chinese_sentiment"
    return config
