"""TFDS builders of the sets that come in registry packages; importing this module registers them."""

from lepton_jax.data.builders.chinese_entities import ChineseEntities as ChineseEntities
from lepton_jax.data.builders.chinese_sentiment import ChineseSentiment as ChineseSentiment
from lepton_jax.data.builders.editorial_sentiment import EditorialSentiment as EditorialSentiment
from lepton_jax.data.builders.movie_sentiment import MovieSentiment as MovieSentiment
from lepton_jax.data.builders.news_articles import NewsArticles as NewsArticles
from lepton_jax.data.builders.newsgroups import Newsgroups as Newsgroups
from lepton_jax.data.builders.opinion_snippets import OpinionSnippets as OpinionSnippets
from lepton_jax.data.builders.product_sentiment import ProductSentiment as ProductSentiment
from lepton_jax.data.builders.sms_spam import SmsSpam as SmsSpam
from lepton_jax.data.builders.trec_questions import TrecQuestions as TrecQuestions
from lepton_jax.data.builders.tweet_entities import TweetEntities as TweetEntities
from lepton_jax.data.builders.tweet_sentiment import TweetSentiment as TweetSentiment
