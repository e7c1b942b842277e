"""The training text of a pretraining run as token rows, source by source, and what is in them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.batches import packed_share
from lepton_jax.data.rows import TokenRows
from lepton_jax.data.shards import encode_documents
from lepton_jax.data.sources import Examples, split_spec
from lepton_jax.data.tokenizers import Tokenizer

_SAMPLE = 100_000  # rows of which the share of real tokens is found, in a random order


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Rows of one or several sources; `sizes` and `weights` are those of `batches.training_batches`."""

    rows: TokenRows
    sizes: tuple[int, ...]
    weights: tuple[float, ...]


def encode(
    config: DataConfig,
    train: Examples,
    tokenizer: Tokenizer,
    max_length: int,
    workers: int = 1,
    quiet: bool = True,
    special_at_cuts: bool = True,
) -> tuple[Mixture, dict[str, Any]]:
    """Returns the rows of a run's training text, and plain JSON for the run's summary: counts, and which share
    of the positions holds a token and no padding.

    Args:
      config: the data section. Without `weights` the sources are one: each text comes once an epoch. With them a
        source gives that share of the tokens that are seen, however many it has, and repeats in epochs of its own.
      train: the texts, with the number of each one's source.
      tokenizer: see `shards.encode_documents`, also for the other arguments.

    Raises:
      UserError: a weighted source has no text of its own; see `shards.encode_documents`.
    """
    names = split_spec(config.train)
    texts: list[list[str]] = [[] for _ in names]
    for text, source in zip(train.texts, train.sources or [0] * len(train), strict=True):
        texts[source].append(text)
    parts = [
        encode_documents(tokenizer, each, max_length, config.cache, workers, quiet, special_at_cuts) for each in texts
    ]
    empty = next((name for name, part in zip(names, parts, strict=True) if not len(part)), None)
    if config.weights and empty is not None:
        raise UserError(f"data.train: {empty} gives no token that training may use, all its texts were dropped or are "
                        f"in an earlier source; leave it and its weight in data.weights out")  # fmt: skip
    rows = TokenRows.join(parts)
    if not len(rows):
        raise UserError(f"data.train={config.train!r}: its texts give no token")
    tokens = [int(part.lengths.sum(dtype=np.int64)) for part in parts]
    mixture = Mixture(rows, (len(rows),), (1.0,))
    shares = [count / sum(tokens) for count in tokens]
    if config.weights:
        # Rows are drawn, and those of one source may be longer than those of another.
        means = [count / len(part) for count, part in zip(tokens, parts, strict=True)]
        weights = tuple(weight / mean for weight, mean in zip(config.weights, means, strict=True))
        mixture = Mixture(rows, tuple(map(len, parts)), weights)
        shares = [weight / sum(config.weights) for weight in config.weights]
    sources = [
        {
            "source": name,
            "documents": len(each),
            "text_bytes": sum(len(text.encode()) for text in each),
            "rows": len(part),
            "tokens": count,
            "share_of_training": share,
        }
        for name, each, part, count, share in zip(names, texts, parts, tokens, shares, strict=True)
    ]
    report = {name: sum(each[name] for each in sources) for name in ("documents", "text_bytes", "rows", "tokens")}
    sample = np.random.default_rng(0).permutation(rows.lengths)[:_SAMPLE]
    real = packed_share(sample, max_length) if config.batching == "packed" else float(sample.mean() / max_length)
    return mixture, report | {"share_of_positions": real, "sources": sources}
