"""English tweets with a mean rating and its sign."""

from __future__ import annotations

import tensorflow_datasets as tfds

from lepton_jax.data.builders.rated_snippets import RatedSnippets


class TweetSentiment(RatedSnippets):
    """4,200 tweets, 200 of them made up, 4 of them rated 0. `opinion_snippets` has the same, without ratings."""

    VERSION = tfds.core.Version("1.0.0")
    FILE = "tweets"
