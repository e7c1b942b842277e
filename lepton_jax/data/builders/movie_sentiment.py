"""English movie-review snippets with a mean rating and its sign."""

from __future__ import annotations

from typing import ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data.builders.rated_snippets import RatedSnippets


class MovieSentiment(RatedSnippets):
    """10,605 sentence-long snippets of rottentomatoes.com, each rated by 20 people (Hutto and Gilbert, ICWSM 2014)."""

    VERSION = tfds.core.Version("1.0.0")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.80, "validation": 0.05, "test": 0.15}
    FILE = "movieReviewSnippets"

    def mend(self, text: str) -> str:
        return text  # 22 escapes of HTML stay what they are in this version of the set
