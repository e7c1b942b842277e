"""Sentences of English newspaper editorials with a mean rating and its sign."""

from __future__ import annotations

import tensorflow_datasets as tfds

from lepton_jax.data.builders.rated_snippets import RatedSnippets


class EditorialSentiment(RatedSnippets):
    """5,190 sentences of 498 opinion articles of the New York Times, 244 of them rated 0.

    `opinion_snippets` has the same sentences, without ratings.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILE = "nytEditorialSnippets"
    DOCUMENTS = True
