"""Our own tokenizer: SentencePiece trained on a corpus.

It is a folder: `tokenizer.model`, SentencePiece's own file, and `tokenizer.sha256` beside it in the format of
`sha256sum`, for a truncated model file can still parse.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sentencepiece

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, content_hash, replacing
from lepton_jax.data.tokenizers import words
from lepton_jax.data.tokenizers.layout import Cut, Layout, Slot
from lepton_jax.data.tokenizers.protocol import Encoded, Truncation

Kind = Literal["unigram", "bpe", "char"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRAINING_SENTENCES = 50_000  # of a corpus; twice as many take twice as long and save 0.5% of the tokens
_LONGEST_SENTENCE = 1000  # characters; SentencePiece leaves out sentences of more than 4,192 bytes
# SentencePiece's result depends on the number of threads; fixed, it is the same on every machine.
_THREADS = 4

MODEL_FILE, HASH_FILE = "tokenizer.model", "tokenizer.sha256"


class SentencePieceTokenizer:
    """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226) as a `Tokenizer`.

    Its special tokens are of SentencePiece's kinds "control" and "unknown", which no text can produce: the
    text "[MASK]" is cut into ordinary pieces.
    """

    pad_id, unk_id, cls_id, sep_id, mask_id = 0, 1, 2, 3, 4

    _layout = Layout(
        single=(Slot(-1, 0, (2,)), Slot(0, 0), Slot(-1, 0, (3,))),
        pair=(Slot(-1, 0, (2,)), Slot(0, 0), Slot(-1, 0, (3,)), Slot(1, 1), Slot(-1, 1, (3,))),
    )

    def __init__(self, model: bytes):
        """Wraps the bytes of a model file that `train` made; raises RuntimeError or ValueError for any other bytes."""
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        pieces = [self._processor.IdToPiece(index) for index in range(min(5, self.vocab_size))]
        if pieces != ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]:
            raise ValueError(f"its first pieces are {pieces}, not the special tokens")
        self._is_byte = np.array([self._processor.IsByte(index) for index in range(self.vocab_size)])
        self.fingerprint = hashlib.sha256(model).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:  # for processes that tokenise
        return SentencePieceTokenizer, (self._model,)

    @property
    def vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    @property
    def word_starts(self) -> np.ndarray:
        """Returns bool [vocab_size]: whether a token begins a word, see `words`."""
        return words.starts(map(self._processor.IdToPiece, range(self.vocab_size)), "▁")

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 [n] token ids of each text, without special tokens."""
        return [np.asarray(ids, np.int32) for ids in self._processor.Encode(list(texts), return_type="numpy")]

    def rows(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> list[Encoded]:
        """Returns one row a text, `[CLS] A [SEP]`, or a pair, `[CLS] A [SEP] B [SEP]`; see `Tokenizer.rows`."""
        first, second = self._cut(texts), None if pairs is None else self._cut(pairs)
        return self._layout.rows(first, second, max_length, truncation)

    def with_specials(self, ids: np.ndarray) -> np.ndarray:
        """Returns int32 [n + 2]: `[CLS] ... [SEP]`."""
        return self._layout.with_specials(ids)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids; special tokens other than [UNK] have none."""
        return self._processor.Decode([int(token) for token in ids])

    def _cut(self, texts: Sequence[str]) -> list[Cut]:
        """Returns ids and offsets of each text.

        SentencePiece gives all but the last byte of a character without a piece an empty range; here each of them
        has the range of the character, as in byte-level vocabularies.
        """
        found = self._processor.Encode(list(texts), return_type="offset_mapping")
        ids = np.fromiter(chain.from_iterable(one["ids"] for one in found), np.int32)
        pairs = chain.from_iterable(one["offsets"] for one in found)
        offsets = np.fromiter(chain.from_iterable(pairs), np.int32).reshape(-1, 2)
        empty = offsets[:, 0] == offsets[:, 1]
        following = np.where(empty, len(ids) - 1, np.arange(len(ids)))
        following = np.minimum.accumulate(following[::-1])[::-1]  # the next token with a range
        bytes_ = np.flatnonzero(empty & self._is_byte[ids])
        offsets[bytes_, 1] = offsets[following[bytes_], 1]
        ends = np.cumsum([len(one["ids"]) for one in found])[:-1]
        return list(zip(np.split(ids, ends), np.split(offsets, ends), strict=True)) if found else []

    def save(self, folder: Path) -> None:
        """Writes the model and its hash.

        Raises:
          UserError: the folder holds another tokenizer.
        """
        path = Path(folder) / MODEL_FILE
        if path.exists() and path.read_bytes() != self._model:
            raise UserError(f"{path}: is another tokenizer, which is not overwritten; choose another folder")
        with replacing(path.with_name(HASH_FILE)) as temporary:
            temporary.write_text(f"{self.fingerprint}  {MODEL_FILE}\n")
        with replacing(path) as temporary:
            temporary.write_bytes(self._model)


def train(
    texts: Iterable[str],
    model_type: Kind = "unigram",
    size: int = 8192,
    byte_fallback: bool = True,
    lowercase: bool = True,
    seed: int = 0,
    cache: str = "",
) -> SentencePieceTokenizer:
    """Returns a tokenizer trained on texts; a second call with the same arguments reads it from the cache.

    The texts are cut into sentences, of which `TRAINING_SENTENCES` are drawn by the seed. Text is normalised
    by NFKC (SentencePiece's nmt_nfkc) and, with `lowercase`, case folded. The rarest 0.05% of the characters
    get no piece of their own: with `byte_fallback` they are written as bytes, else they become [UNK].

    Args:
      texts: the corpus.
      model_type: "unigram" (Kudo 2018, arXiv:1804.10959), "bpe" (Sennrich et al. 2016, arXiv:1508.07909) or "char",
        a piece a character, which suits spans of scripts without spaces.
      size: pieces in the vocabulary, special tokens and the 256 bytes included; of characters the most there may be.
      byte_fallback: whether a character without a piece is written as the bytes of its UTF-8.
      lowercase: whether case is folded.
      seed: of the choice of sentences.
      cache: see `cache_folder`.

    Raises:
      UserError: the corpus is empty, or cannot give a vocabulary of this size.
    """
    texts = list(texts)
    settings = (sentencepiece.__version__, model_type, size, byte_fallback, lowercase, seed,
                TRAINING_SENTENCES, _LONGEST_SENTENCE, _THREADS)  # fmt: skip
    folder = cache_folder(cache) / "tokenizers" / content_hash(settings, texts)
    if (folder / MODEL_FILE).exists():
        return read(folder)
    sentences = _sample(list(_sentences(texts)), seed)
    if not sentences:
        raise UserError("the tokenizer cannot be trained: the corpus holds no text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=size,
            byte_fallback=byte_fallback,
            character_coverage=0.9995,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            num_threads=_THREADS,
            pad_id=0, unk_id=1, bos_id=2, eos_id=3,
            pad_piece="[PAD]", unk_piece="[UNK]", bos_piece="[CLS]", eos_piece="[SEP]", control_symbols=["[MASK]"],
            minloglevel=2,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"data.tokenizer_size={size}: {_reason(str(error))}") from error
    tokenizer = SentencePieceTokenizer(model.getvalue())
    tokenizer.save(folder)
    return tokenizer


def read(folder: Path | str) -> SentencePieceTokenizer:
    """Returns the tokenizer that `SentencePieceTokenizer.save` wrote into a folder.

    Raises:
      UserError: its file is missing, damaged or another program's.
    """
    path = Path(folder) / MODEL_FILE
    try:
        model = path.read_bytes()
        expected = path.with_name(HASH_FILE).read_text().split()[0]
    except (OSError, IndexError) as error:
        raise UserError(f"{folder}: holds no tokenizer; it must have {MODEL_FILE} and {HASH_FILE}") from error
    if hashlib.sha256(model).hexdigest() != expected:
        raise UserError(f"{path}: is damaged, its sha256 is not that of {HASH_FILE}; restore it from a copy")
    try:
        return SentencePieceTokenizer(model)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: is no tokenizer of this package ({error})") from error


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for sentence in re.split(r"\n|(?<=[.!?])\s|(?<=[\u3002\uff01\uff1f])", text):
            for start in range(0, len(sentence), _LONGEST_SENTENCE):
                piece = sentence[start : start + _LONGEST_SENTENCE].strip()
                if piece:
                    yield piece


def _sample(sentences: list[str], seed: int) -> list[str]:
    if len(sentences) <= TRAINING_SENTENCES:
        return sentences
    chosen = np.random.default_rng(seed).choice(len(sentences), TRAINING_SENTENCES, replace=False)
    return [sentences[index] for index in np.sort(chosen)]


def _reason(message: str) -> str:
    """Returns what SentencePiece's refusal of a vocabulary size means, with a size that works."""
    if match := re.search(r"value <= (\d+)", message):
        return f"too many for this corpus, which gives at most {match[1]} pieces"
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"too few for this corpus, whose characters alone need {match[1]} pieces"
    return f"SentencePiece cannot train ({' '.join(message.split())})"
