"""What texts look like to a model, in a few figures: a reference from validation data, and how far others are from it.

A model in use gets other texts than it was made for, and nobody tells it. Four figures need no labels: how sure the
model is, how long the texts are, how many of their tokens its vocabulary lacks, and where its features of them lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.core.fields import build
from lepton_jax.infer import readings, texts
from lepton_jax.workdir import read_json, write_json

if TYPE_CHECKING:
    from lepton_jax.infer.predictor import Predictor

_FILE = "reference.json"
_MOST = 2000  # values of a figure that are kept, evenly chosen by rank


@dataclasses.dataclass(frozen=True)
class Profile:
    """The figures of some texts. Of the first three, values of single texts are kept, in increasing order."""

    count: int  # texts
    confidence: tuple[float, ...]  # the score of a prediction, see `readings.in_short`; of a regressor its number
    length: tuple[float, ...]  # tokens, special ones not counted, those beyond the model's length counted
    unknown: tuple[float, ...]  # share of the tokens that are unknown
    mean: tuple[float, ...]  # of the features, each dimension by itself
    deviation: tuple[float, ...]  # standard deviation, likewise
    predictor: Any = dataclasses.field(default=None, compare=False, repr=False)  # what measures texts like these

    @classmethod
    def find(cls, folder: Path) -> Profile | None:
        """Returns the profile that `save` wrote into a folder, None if there is none.

        Raises:
          UserError: it is damaged.
        """
        if not (folder / _FILE).exists():
            return None
        tree = read_json(folder / _FILE)
        profile: Profile = build(cls, tree, str(folder / _FILE))
        columns = [np.asarray(getattr(profile, field.name), np.float64) for field in _fields()]
        if len(profile.mean) != len(profile.deviation) or not all(len(x) and np.isfinite(x).all() for x in columns[1:]):
            raise UserError(f"{folder / _FILE}: is damaged; give the command that made it again")
        return profile

    def save(self, folder: Path) -> None:
        """Writes the profile into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _FILE, {field.name: getattr(self, field.name) for field in _fields()})


def measure(predictor: Predictor, given: Sequence[str], pairs: Sequence[str] | None = None) -> Profile:
    """Returns the profile of texts, or pairs of them, as a predictor sees them.

    Raises:
      UserError: there are none, or one is no text.
    """
    if not len(given):
        raise UserError("a profile needs texts, and there are none")
    encoded, signature = predictor.encode(given, pairs), predictor.signature
    outputs, features = predictor.run(encoded.rows, [0] * len(encoded.rows))
    if signature.task in ("embedding", "masked_lm"):
        sure = np.ones(len(given))  # of a text as a whole they have no opinion
    else:
        sure = [readings.in_short(each)[1] for each in readings.read(signature, outputs, given, encoded.words)]
    unknown, rows = predictor.tokenizer.unk_id, zip(encoded.rows.ids, encoded.sizes, strict=True)
    shares = [0.0 if unknown is None else float((ids == unknown).sum()) / max(kept, 1) for ids, (_, kept) in rows]
    return Profile(
        len(given),
        _some(sure),
        _some([size for size, _ in encoded.sizes]),
        _some(shares),
        tuple(features.mean(axis=0, dtype=np.float64).tolist()),
        tuple(features.std(axis=0, dtype=np.float64).tolist()),
        predictor,
    )


def drift(profile: Profile, given: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns how far texts are from those of a profile.

    Args:
      profile: `predictor.profile`, or what `measure` returned.
      given, pairs: the texts; those that no tokenizer can read are left out.

    Returns:
      `texts` and `errors`, how many were measured and left out; "confidence", "length" and "unknown", each
      `{"reference": mean, "now": mean, "distance": float, "p_value": float}` with the Kolmogorov-Smirnov statistic,
      the largest difference between two shares of texts below some value, and the probability of at least that one
      between samples of the same texts; and "embedding", `{"distance": float, "expected": float}`: the root mean square
      over dimensions of the difference of means over the reference's standard deviation, and what it would be by
      chance.

    Raises:
      UserError: the profile belongs to no predictor, or there are no texts.
    """
    from scipy import stats  # here, for to load it takes longer than all else of this package

    if profile.predictor is None:
        raise UserError("drift(profile, texts): the profile is of no predictor; take predictor.profile")
    texts.require_sequences(given, pairs)
    faults = texts.faults(given, pairs)
    good = [number for number in range(len(given)) if number not in faults]
    now = measure(
        profile.predictor, [given[number] for number in good], None if pairs is None else [pairs[n] for n in good]
    )
    found: dict[str, Any] = {"texts": now.count, "errors": len(faults)}
    for name in ("confidence", "length", "unknown"):
        one, other = getattr(profile, name), getattr(now, name)
        test: Any = stats.ks_2samp(one, other)
        found[name] = {
            "reference": float(np.mean(one)),
            "now": float(np.mean(other)),
            "distance": float(test.statistic),
            "p_value": float(test.pvalue),
        }
    deviation = np.maximum(profile.deviation, 1e-9)
    distance = np.sqrt(np.mean(np.square((np.subtract(now.mean, profile.mean)) / deviation)))
    return found | {
        "embedding": {"distance": float(distance), "expected": float(np.sqrt(1 / profile.count + 1 / now.count))}
    }


def _some(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Returns at most `_MOST` of the values in increasing order."""
    ordered = np.sort(np.asarray(values, np.float64))
    chosen = np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST)).round().astype(int)
    return tuple(ordered[chosen].tolist())


def _fields() -> list[dataclasses.Field[Any]]:
    """Returns what a profile consists of, without the predictor."""
    return [field for field in dataclasses.fields(Profile) if field.name != "predictor"]
