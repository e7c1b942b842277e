"""What the rest of the package asks of a tokenizer, whoever made its vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

# Which text loses tokens, at its end, where a row would be too long. "longest_first" shortens the longer of two
# texts until both are equally long, then both; "none" takes a text that is too long for a mistake.
Truncation = Literal["longest_first", "only_first", "only_second", "none"]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of one row: a text or a pair of texts, with special tokens around them."""

    ids: np.ndarray  # int32 [n]
    type_ids: np.ndarray  # int32 [n]: what BERT calls the token types
    offsets: np.ndarray  # int32 [n, 2]: text[start:end] of the text that the token is from; (0, 0) of special tokens
    sequence: np.ndarray  # int8 [n]: 0 of the first text, 1 of the second, -1 of special tokens

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """Cuts texts into tokens and owns how special tokens are put around them. No text makes a special token.

    A special token that the vocabulary lacks has the id None: GPT-2 has neither [CLS], [SEP] nor [MASK].
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills a row up. Masks hide it, so that a vocabulary without such a token lends another one."""
        ...

    @property
    def unk_id(self) -> int | None: ...
    @property
    def cls_id(self) -> int | None: ...
    @property
    def sep_id(self) -> int | None: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def fingerprint(self) -> str:
        """A hash of all that decides how a text is cut."""
        ...

    @property
    def word_starts(self) -> np.ndarray:
        """Bool [vocab_size]: whether a token begins a word, see `words`."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 [n] token ids of each text, without special tokens."""
        ...

    def rows(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
    ) -> list[Encoded]:
        """Returns one row a text, or a pair of texts, with special tokens.

        Args:
          texts: the texts, or the first of each pair.
          pairs: the second of each pair.
          max_length: of a row, special tokens included; None for no limit.
          truncation: what happens to a row that is longer.

        Raises:
          UserError: a row is longer than `max_length` and `truncation` cannot make it fit.
          ValueError: there are not as many pairs as texts.
        """
        ...

    def with_specials(self, ids: np.ndarray) -> np.ndarray:
        """Returns int32 [m], m >= n: the ids [n] of one document with the special tokens around it."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids; special tokens other than the unknown one have none."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the tokenizer so that `load(folder)` returns an equal one.

        Raises:
          UserError: the folder holds another tokenizer.
        """
        ...
