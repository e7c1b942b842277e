"""TFDS builders of the sets that come in registry packages; importing this module registers them."""

from lepton_jax.data.builders.chinese_sentiment import ChineseSentiment as ChineseSentiment
from lepton_jax.data.builders.movie_sentiment import MovieSentiment as MovieSentiment
from lepton_jax.data.builders.news_articles import NewsArticles as NewsArticles
from lepton_jax.data.builders.opinion_snippets import OpinionSnippets as OpinionSnippets
