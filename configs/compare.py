"""Two trained models: which is better, and how sure is that?

    python -m lepton_jax.main --config=configs/compare.py --workdir=runs/compare \\
        --config.a=runs/one --config.b=runs/other

`a` and `b` are finished trainings, with one seed or several each: the folder of a run, a folder that holds a run for
each seed, or several by commas. Of fine-tunings the test examples must be the same; `summary.json` and the report have
each metric of both, the difference b - a with its 95% interval by a paired bootstrap, and for classes McNemar's exact
test. Of pretrainings what is predicted and measured must be the same; the interval of a difference is then that of the
paired t-test over seeds, and there is none with one seed. Both show in which fields the configs differ, and the
differences of all other metrics that the two have. It takes seconds.
"""

from ml_collections import ConfigDict

from lepton_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    return default_config("compare")
