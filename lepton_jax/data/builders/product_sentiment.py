"""Sentences of English product reviews with a mean rating and its sign."""

from __future__ import annotations

import tensorflow_datasets as tfds

from lepton_jax.data.builders.rated_snippets import RatedSnippets


class ProductSentiment(RatedSnippets):
    """3,708 sentences of 300 reviews on amazon.com, 98 of them rated 0.

    `opinion_snippets` has the same sentences, without ratings.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILE = "amazonReviewSnippets"
    DOCUMENTS = True
