"""Train, validation and test examples that share no text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Literal

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.identity import fraction, normalise, split_of
from lepton_jax.data.sources import Examples, load, numeric_labels, own_splits, split_spec

NAMES = ("train", "validation", "test")
_REMEDIES = {
    "train": "use more data, or smaller data.validation_share and data.test_share",
    "validation": "use a larger data.validation_share, or another data.validation",
    "test": "use a larger data.test_share, another data.test, or data.test_share=0 for none",
}


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains on and is measured on. `report` is plain JSON for the run's summary."""

    train: Examples
    validation: Examples
    test: Examples
    report: dict[str, Any]


def load_splits(config: DataConfig, labelled: Literal["classes", "numbers"] | None) -> Splits:
    """Returns the splits that a config describes, deduplicated and without a text in common.

    Where `config.validation` (`test`) is empty, each source of `config.train` gives its own: a TFDS source
    that names no split its `validation` (`test`) split, if that has usable rows; any other the share
    `config.validation_share` (`test_share`) of its texts, chosen by a hash of the text and `config.split_seed`.

    Then texts of train with fewer than `config.min_characters` are dropped; in every split texts that occur with two
    labels, and repetitions; and texts of test leave validation and train, texts of validation leave train. Equality
    is `identity.normalise`'s.

    Args:
      config: the data section.
      labelled: "classes" for labels that are names, "numbers" for floats, None for texts without labels.

    Raises:
      UserError: see `sources.load`; not as many weights as training sources; a split that was asked for and is
        empty; a single class; a label that only validation or test has; a label that is no number.
    """
    named = len(split_spec(config.train))
    if config.weights and len(config.weights) != named:
        raise UserError(f"data.weights={config.weights}: {len(config.weights)} weights, but data.train names {named} "
                        f"source{'s' * (named > 1)}; give one each")  # fmt: skip
    pools, sources = _read(config, None if labelled is None else config.label, labelled == "numbers")
    report: dict[str, Any] = {"sources": sources}
    taken: set[str] = set()
    splits: dict[str, Examples] = {}
    for name in reversed(NAMES):  # a text stays in the split that is last in NAMES
        splits[name], report[name] = _clean(pools[name], taken, config.min_characters if name == "train" else 0)
        taken |= set(map(normalise, splits[name].texts))
    for name in NAMES:
        if not len(splits[name]) and _requested(config, name):
            counts = ", ".join(f"{value} {key}" for key, value in report[name].items())
            if report[name].get("short", 0) == len(pools[name]) > 0:
                longest = max(map(len, pools[name].texts))
                raise UserError(f"data.min_characters={config.min_characters}: leaves none of the {len(pools[name])} "
                                f"training texts; the longest has {longest} characters")  # fmt: skip
            raise UserError(f"data.{name}: no example is left ({len(pools[name])} read, {counts}); {_REMEDIES[name]}")
    if labelled == "classes":
        _check_classes(config, splits)
    if config.max_examples:
        by_class, before = labelled == "classes", len(splits["train"])
        splits["train"] = _subset(splits["train"], config.max_examples, config.split_seed, by_class)
        report["train"]["beyond_max_examples"] = before - len(splits["train"])
    for name in NAMES:
        report[name]["examples"] = len(splits[name])
    return Splits(**splits, report=report)


def _requested(config: DataConfig, name: str) -> bool:
    return name == "train" or bool(getattr(config, name)) or getattr(config, f"{name}_share") > 0


def _read(config: DataConfig, label: str | None, numbers: bool) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads every source into the pool of its split; nothing is cleaned yet."""
    pools: dict[str, list[Examples]] = {name: [] for name in NAMES}
    sources: dict[str, Any] = {}

    def read(source: str, may_be_empty: bool = False) -> Examples:
        examples = load(source, config.text, label, config.cache, may_be_empty=may_be_empty)
        if numbers:  # in one spelling, so that 1 and 1.0 are no conflict
            examples = dataclasses.replace(examples, labels=list(map(repr, numeric_labels(examples))))
        sources[source] = {"read": len(examples) + sum(examples.dropped.values()), "dropped": examples.dropped}
        return examples

    given = {name: split_spec(getattr(config, name)) for name in NAMES[1:] if getattr(config, name)}
    for name, specs in given.items():
        pools[name] += map(read, specs)
    for source in split_spec(config.train):
        examples, own = read(source), own_splits(source, config.cache)
        shares: dict[str, float] = {}
        for name in NAMES[1:]:
            if name in given:
                continue
            if name in own and len(prepared := read(f"{source}:{name}", may_be_empty=True)):
                pools[name].append(prepared)
            else:
                shares[name] = getattr(config, f"{name}_share")
        shares["train"] = 1 - sum(shares.values())
        rows: dict[str, list[int]] = {name: [] for name in shares}
        for row, text in enumerate(examples.texts):
            rows[split_of(text, shares, key=f"split {config.split_seed}")].append(row)
        for name, chosen in rows.items():
            pools[name].append(examples.take(chosen))
    return {name: _join(parts, label is not None) for name, parts in pools.items()}, sources


def _join(parts: list[Examples], labelled: bool) -> Examples:
    labels = [label for part in parts for label in part.labels or ()]
    texts = [text for part in parts for text in part.texts]
    sources = [number for number, part in enumerate(parts) for _ in part.texts]
    return Examples(texts, labels if labelled else None, sources=sources)


def _clean(examples: Examples, taken: set[str], shortest: int) -> tuple[Examples, dict[str, int]]:
    """Returns the rows that stay, and how many left for which reason; `taken` are normalised texts of other splits."""
    keys = list(map(normalise, examples.texts))
    labels = examples.labels or [""] * len(keys)
    seen: dict[str, set[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        seen.setdefault(key, set()).add(label)
    kept: dict[str, int] = {}
    counts = {"duplicates": 0, "conflicting": 0, "overlap": 0} | ({"short": 0} if shortest else {})
    for row, key in enumerate(keys):
        if len(examples.texts[row]) < shortest:
            counts["short"] += 1
        elif key in taken:
            counts["overlap"] += 1
        elif len(seen[key]) > 1:
            counts["conflicting"] += 1
        elif key in kept:
            counts["duplicates"] += 1
        else:
            kept[key] = row
    return examples.take(list(kept.values())), counts


def _check_classes(config: DataConfig, splits: dict[str, Examples]) -> None:
    known = sorted(set(splits["train"].labels or ()))
    if len(known) < 2:
        raise UserError(
            f"data.train={config.train!r}: every label in the column {config.label!r} is {known[0]!r}; "
            "classification needs two classes or more"
        )
    for name in NAMES[1:]:
        unknown = Counter(label for label in splits[name].labels or () if label not in known)
        if unknown:
            label, count = unknown.most_common(1)[0]
            raise UserError(
                f"data.{name}: {count} rows have the label {label!r}, which no training example has; "
                f"labels in train: {', '.join(map(repr, known[:20]))}"
            )


def _subset(examples: Examples, size: int, seed: int, by_class: bool) -> Examples:
    """Returns `size` examples in their old order, chosen by the seed; fewer are a subset of more.

    With classes they take turns: each class gives one example before any gives its next.
    """
    order = sorted(range(len(examples)), key=lambda row: fraction(examples.texts[row], key=f"subset {seed}"))
    if by_class and examples.labels is not None:
        turns: Counter[str] = Counter()
        ranked = []
        for row in order:
            label = examples.labels[row]
            ranked.append((turns[label], label, row))
            turns[label] += 1
        order = [row for _, _, row in sorted(ranked)]
    return examples.take(sorted(order[:size]))
