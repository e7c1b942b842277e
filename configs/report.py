"""A report of runs that are there: tables, figures, and which setting is the best.

    python -m lepton_jax.main --config=configs/report.py --workdir=reports/masking --config.runs='runs/masking/*'

`runs` names folders of runs, folders that hold some, or globs, several by commas; those that differ by their seeds
alone are one row. `metrics` names figures of `summary.json`, the main one first; they must mean the same in all runs.
With `--config.x=data.max_examples --config.by=model.init` there is a figure of the main metric over a field, a line for
each value of another. The folder gets `report.html`, `report.md`, `tables/` and `figures/`, made anew each time. It
takes seconds.
"""

from ml_collections import ConfigDict

from lepton_jax.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the recipe; it has no variants."""
    del arg
    return default_config("report")
