"""Tokenizers behind one small protocol: SentencePiece trained on a corpus, and those of existing checkpoints."""

from lepton_jax.data.tokenizers.folder import from_config, is_here, load
from lepton_jax.data.tokenizers.pretrained import PretrainedTokenizer
from lepton_jax.data.tokenizers.protocol import Encoded, Tokenizer, Truncation
from lepton_jax.data.tokenizers.sentence_piece import KINDS, SentencePieceTokenizer, train

__all__ = [
    "KINDS",
    "Encoded",
    "PretrainedTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "Truncation",
    "from_config",
    "is_here",
    "load",
    "train",
]
