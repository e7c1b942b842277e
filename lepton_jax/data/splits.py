"""Train, validation and test examples that share no text."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from typing import Any

from lepton_jax.config import DataConfig
from lepton_jax.core.errors import UserError
from lepton_jax.data.identity import fraction, normalise, split_of
from lepton_jax.data.labels import Kind
from lepton_jax.data.sources import Examples, join, load, split_spec
from lepton_jax.data.tfds_sets import class_names, own_splits

NAMES = ("train", "validation", "test")
_REMEDIES = {
    "train": "use more data, or smaller data.validation_share and data.test_share",
    "validation": "use a larger data.validation_share, or another data.validation",
    "test": "use a larger data.test_share, another data.test, or data.test_share=0 for none",
}


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a run trains on and is measured on.

    Attributes:
      train, validation, test: they share no text.
      out_of_domain: source -> its examples, none of which is in train or validation.
      labels: the classes, or the types of spans, of train: sorted, numbers by their value; classes of a TFDS set in
        the set's own order, in which the positive one of two comes last.
      report: plain JSON for the run's summary.
    """

    train: Examples
    validation: Examples
    test: Examples
    out_of_domain: dict[str, Examples]
    labels: tuple[str, ...]
    report: dict[str, Any]


def load_splits(config: DataConfig, labelled: Kind | None) -> Splits:
    """Returns the splits that a config describes, deduplicated and without a text in common.

    Where `config.validation` (`test`) is empty, each source of `config.train` gives its own: a TFDS source
    that names no split its `validation` (`test`) split, if that has usable rows; any other the share
    `config.validation_share` (`test_share`) of its texts, chosen by a hash of the text and `config.split_seed`. Of
    classes each gives that share of its own texts, to the nearest number, and at least one if any is left to train on.

    Then texts of train with fewer than `config.min_characters` are dropped; in every split texts that occur with two
    labels, and repetitions; and texts of test and of the sources out of domain leave validation and train, texts of
    validation leave train. A text is here a pair of them, where there are pairs; equality is `identity.normalise`'s.

    Args:
      config: the data section.
      labelled: what the labels are, None for texts without labels.

    Raises:
      UserError: see `sources.load`; not as many weights as training sources; a split that was asked for and is
        empty; a single class or number; a label that train does not have.
    """
    named = len(split_spec(config.train))
    if config.weights and len(config.weights) != named:
        raise UserError(f"data.weights={config.weights}: {len(config.weights)} weights, but data.train names {named} "
                        f"source{'s' * (named > 1)}; give one each")  # fmt: skip
    pools, sources = _read(config, labelled)
    report: dict[str, Any] = {"sources": sources}
    abroad = {name: pools.pop(name) for name in split_spec(config.out_of_domain) if config.out_of_domain}
    taken: set[str] = set()
    splits: dict[str, Examples] = {}
    for name, pool in abroad.items():
        abroad[name], report.setdefault("out_of_domain", {})[name] = _clean(pool, set(), 0)
        taken |= set(_keys(pool))
    for name in reversed(NAMES):  # a text stays in the split that is last in NAMES
        elsewhere = set() if name == "test" else taken
        splits[name], report[name] = _clean(pools[name], elsewhere, config.min_characters if name == "train" else 0)
        taken |= set(_keys(splits[name]))
    for name in NAMES:
        if not len(splits[name]) and _requested(config, name):
            counts = ", ".join(f"{value} {key}" for key, value in report[name].items())
            if report[name].get("short", 0) == len(pools[name]) > 0:
                longest = max(map(len, pools[name].texts))
                raise UserError(f"data.min_characters={config.min_characters}: leaves none of the {len(pools[name])} "
                                f"training texts; the longest has {longest} characters")  # fmt: skip
            raise UserError(f"data.{name}: no example is left ({len(pools[name])} read, {counts}); {_REMEDIES[name]}")
    labels = _check_labels(config, labelled, splits, abroad) if labelled else ()
    if config.max_examples:
        by_class, before = labelled == "classes", len(splits["train"])
        splits["train"] = _subset(splits["train"], config.max_examples, config.split_seed, by_class)
        report["train"]["beyond_max_examples"] = before - len(splits["train"])
    for name in NAMES:
        report[name]["examples"] = len(splits[name])
    for name, examples in abroad.items():
        report["out_of_domain"][name]["examples"] = len(examples)
    return Splits(**splits, out_of_domain=abroad, labels=labels, report=report)


def _requested(config: DataConfig, name: str) -> bool:
    return name == "train" or bool(getattr(config, name)) or getattr(config, f"{name}_share") > 0


def _read(config: DataConfig, kind: Kind | None) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads every source into the pool of its split, one out of domain into its own; nothing is cleaned yet."""
    pools: dict[str, list[Examples]] = {name: [] for name in NAMES}
    names: dict[str, list[str]] = {name: [] for name in NAMES}
    sources: dict[str, Any] = {}
    label = config.label if kind else None

    def read(source: str, may_be_empty: bool = False) -> Examples:
        examples = load(source, config.text, label, config.cache, pair=config.pair, kind=kind or "classes",
                        may_be_empty=may_be_empty)  # fmt: skip
        sources[source] = {"read": len(examples) + sum(examples.dropped.values()), "dropped": examples.dropped}
        return examples

    def put(name: str, source: str, examples: Examples) -> None:
        pools[name].append(examples)
        names[name].append(source)

    given = {name: split_spec(getattr(config, name)) for name in NAMES[1:] if getattr(config, name)}
    for name, specs in given.items():
        for source in specs:
            put(name, source, read(source))
    for source in split_spec(config.train):
        examples, own = read(source), own_splits(source, config.cache)
        shares: dict[str, float] = {}
        for name in NAMES[1:]:
            if name in given:
                continue
            if name in own and len(prepared := read(f"{source}:{name}", may_be_empty=True)):
                put(name, source, prepared)
            else:
                shares[name] = getattr(config, f"{name}_share")
        for name, chosen in _divide(examples, shares, f"split {config.split_seed}", kind == "classes").items():
            put(name, source, examples.take(chosen))
    abroad = {name: read(name) for name in split_spec(config.out_of_domain) if config.out_of_domain}
    return {name: join(pools[name], tuple(names[name])) for name in NAMES} | abroad, sources


def _divide(examples: Examples, shares: dict[str, float], key: str, by_class: bool) -> dict[str, list[int]]:
    """Returns the rows of each split, in order: those with shares, and "train" which gets the rest.

    Equal texts are in one split. With classes each split gets its share of every class.
    """
    keys = _keys(examples)
    where: dict[str, str] = {}
    if by_class:
        classes: dict[str, dict[str, None]] = {}  # label -> its texts; one of several labels counts for the first
        label_of: dict[str, str] = {}
        for text, label in zip(keys, examples.labels or (), strict=True):
            classes.setdefault(label_of.setdefault(text, label), {})[text] = None
        for texts in classes.values():
            order = sorted(texts, key=lambda text: fraction(text, key=key))
            for name, share in shares.items():
                # Halves are rounded up, and a class with two texts has one for each side.
                count = min(max(math.floor(share * len(texts) + 0.5), 1), len(order) - 1) if share else 0
                where |= dict.fromkeys(order[:count], name)
                order = order[count:]
    else:
        all_shares = shares | {"train": 1 - sum(shares.values())}
        where = {text: split_of(text, all_shares, key=key) for text in keys}
    rows: dict[str, list[int]] = {name: [] for name in (*shares, "train")}
    for row, text in enumerate(keys):
        rows[where.get(text, "train")].append(row)
    return rows


def _keys(examples: Examples) -> list[str]:
    """Returns what makes each text, or pair of texts, one of a kind."""
    if examples.pairs is None:
        return list(map(normalise, examples.texts))
    return [f"{normalise(a)}\0{normalise(b)}" for a, b in zip(examples.texts, examples.pairs, strict=True)]


def _clean(examples: Examples, taken: set[str], shortest: int) -> tuple[Examples, dict[str, int]]:
    """Returns the rows that stay, and how many left for which reason; `taken` are normalised texts of other splits."""
    keys = _keys(examples)
    labels = examples.labels or [""] * len(keys)
    seen: dict[str, set[Any]] = {}
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


def _names(label: Any, kind: Kind) -> set[str]:
    """Returns the classes, or the types of spans, that a label names."""
    if kind == "classes":
        return {label}
    return set(label) if kind == "sets" else {name for _, _, name in label}


def _check_labels(
    config: DataConfig, kind: Kind, splits: dict[str, Examples], abroad: dict[str, Examples]
) -> tuple[str, ...]:
    """Returns what the labels of train name, in order, once all others name nothing else."""
    train = splits["train"].labels or []
    where = f"data.train={config.train!r}: every label in the column {config.label!r}"
    if kind == "numbers":
        if len(set(train)) < 2:
            raise UserError(f"{where} is {train[0]}; regression needs different ones")
        return ()
    known = set().union(*(_names(label, kind) for label in train))
    if kind == "classes" and len(known) < 2:
        raise UserError(f"{where} is {train[0]!r}; classification needs two classes or more")
    if not known:
        raise UserError(f"{where} is empty; there is nothing to learn")
    labels = tuple(sorted(known))  # first, for 1 and 1.0 are equal numbers, and a set has no order of its own
    with contextlib.suppress(ValueError):
        labels = tuple(sorted(labels, key=float))
    if kind == "classes":
        declared = {class_names(source, config.label, config.cache) for source in split_spec(config.train)}
        if len(declared) == 1 and known <= set(names := declared.pop()):
            labels = tuple(name for name in names if name in known)
    for name, examples in ({f"data.{name}": splits[name] for name in NAMES[1:]} | abroad).items():
        unknown = Counter(each for label in examples.labels or () for each in _names(label, kind) - known)
        if unknown:
            label, count = unknown.most_common(1)[0]
            raise UserError(f"{name}: {count} rows have the label {label!r}, which no training example has; labels in "
                            f"train: {', '.join(map(repr, labels[:20]))}")  # fmt: skip
    return labels


def _subset(examples: Examples, size: int, seed: int, by_class: bool) -> Examples:
    """Returns `size` examples in their old order, chosen by the seed; fewer are a subset of more.

    With classes they take turns: each class gives one example before any gives its next.
    """
    keys = _keys(examples)
    order = sorted(range(len(examples)), key=lambda row: fraction(keys[row], key=f"subset {seed}"))
    if by_class and examples.labels is not None:
        turns: Counter[str] = Counter()
        ranked = []
        for row in order:
            label = examples.labels[row]
            ranked.append((turns[label], label, row))
            turns[label] += 1
        order = [row for _, _, row in sorted(ranked)]
    return examples.take(sorted(order[:size]))
