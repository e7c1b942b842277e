"""Two fine-tuned models on the same test examples: which is better, and how sure is that?

    python -m lepton_jax.main --config=configs/compare.py --workdir=runs/compare \\
        --config.a=runs/one --config.b=runs/other

`a` and `b` are folders of finished fine-tunings, with one seed or several each; the test examples must be the same.
`summary.json` and the report have each metric of both, the difference b - a with its 95% interval by a paired
bootstrap, and for classes McNemar's exact test. It takes seconds.
"""

from ml_collections import ConfigDict

from lepton_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    return default_config("compare")
