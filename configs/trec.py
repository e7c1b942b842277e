"""MiniLM on questions, by the kind of their answer: 6 coarse classes or 50 fine ones.

    python -m lepton_jax.main --config=configs/trec.py --workdir=runs/trec_coarse
    python -m lepton_jax.main --config=configs/trec.py:fine --workdir=runs/trec_fine

4,528 training questions (the test is a tenth of them, held out by a hash, not the 500 of TREC 10). Three seeds: about
ten minutes on two CPU cores, `:fine` fifteen; 94% and 88% are right, of TF-IDF 88% and 80%.
"""

from ml_collections import ConfigDict

from lepton_jax.core.errors import UserError
from lepton_jax.recipes import MINILM, tuned


def get_config(arg: str = "coarse") -> ConfigDict:
    """Returns the recipe for "coarse" or "fine" classes."""
    kind = arg or "coarse"
    if kind not in ("coarse", "fine"):
        raise UserError(f"configs/trec.py:{arg}: unknown variant; known: coarse, fine")
    steps = {"coarse": 425, "fine": 850}[kind]
    config = tuned("classification", MINILM, length=40, steps=steps, rate=2e-4)
    config.data.update(train="tfds:trec_questions", label=kind)
    return config
