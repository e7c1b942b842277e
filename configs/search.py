"""A search for the best values of some fields, by validation data; hopeless trials are given up early.

    python -m lepton_jax.main --config=configs/search.py:finetuning_rate --workdir=runs/search

ARG is a file of `experiments/` with a `space()` (`finetuning_rate`), or a path. Each trial is an ordinary run, in the
folder of the hash of its config. The same command goes on until there are as many trials as it says. It ends with the
best trial's plain command, and a report of all. Needs `pip install 'lepton_jax[experiments]'`.

    --config.trials=20              in all
    --config.pruner=hyperband       how a trial is found hopeless; `none`: never
    --config.workers=2              so many at once, or --config.gpus='("0","1")' one a GPU
"""

from ml_collections import ConfigDict

from lepton_jax.recipes import of_experiment


def get_config(arg: str = "") -> ConfigDict:
    """Returns the stage for the experiment in a file, or of that name."""
    return of_experiment("search", __file__, arg)
