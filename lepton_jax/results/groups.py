"""Runs that differ by their seeds alone, and which group of them is the best: by how much, and how sure is that?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lepton_jax.core.errors import UserError
from lepton_jax.evaluate.compare import compare
from lepton_jax.evaluate.display import last_name, lower_is_better
from lepton_jax.evaluate.lines import KINDS
from lepton_jax.results.runs import Run
from lepton_jax.workdir import read_jsonl

LEVEL = 0.05  # a p-value below it says that two groups differ
BOOTSTRAP, T_TEST = "paired bootstrap over examples and seeds", "paired t-test over seeds"


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one name, by their seeds; those that are not complete are there, and count in nothing."""

    name: str
    runs: tuple[Run, ...]

    @property
    def complete(self) -> dict[int, Run]:
        """The runs that are complete, seed -> run."""
        return {run.seed: run for run in self.runs if run.state == "complete"}

    def values(self, metric: str) -> dict[int, float]:
        """Returns a metric of each complete run, by seed.

        Raises:
          UserError: a run lacks it.
        """
        return {seed: run.number(metric) for seed, run in self.complete.items()}


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A metric of a group."""

    mean: float  # NaN where there is no run, or one of them does not define the metric
    std: float  # standard deviation over seeds, n - 1 in the denominator; NaN of fewer than two
    n: int
    values: Mapping[int, float]  # by seed


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Which group is the best by a metric, and whether a test says so against every other."""

    metric: str
    best: str  # a group's name; empty where no group has the metric, or all have the same value
    test: str  # which one was used; empty: none, and why not is in `reason`
    p_values: Mapping[str, float]  # of each other group against the best, after Holm's correction
    examples: int  # over which the bootstrap drew; 0 without it
    seeds: int  # the fewest that the best shares with another group
    reason: str = ""  # why there is no test

    @property
    def sure(self) -> bool:
        """Whether the test says of every other group that the best one is better."""
        return bool(self.p_values) and all(value < LEVEL for value in self.p_values.values())


def group(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups of runs, in the order of their first ones.

    Raises:
      UserError: two complete runs of a name have the same seed.
    """
    named: dict[str, list[Run]] = {}
    for run in runs:
        named.setdefault(run.name, []).append(run)
    for name, members in named.items():
        seen: dict[int, Run] = {}
        for run in members:
            if run.state == "complete" and (other := seen.setdefault(run.seed, run)) is not run:
                raise UserError(f"{run.folder}: is {name!r} with seed {run.seed}, as {other.folder} is; leave one out")
    return [Group(name, tuple(sorted(members, key=lambda run: run.seed))) for name, members in named.items()]


def statistic(group: Group, metric: str) -> Statistic:
    """Returns mean and standard deviation of a metric over the seeds of a group."""
    values = group.values(metric)
    numbers = np.array(list(values.values()), np.float64)
    mean = float(numbers.mean()) if len(numbers) else math.nan
    std = float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan
    return Statistic(mean, std, len(numbers), values)


def judge(groups: Sequence[Group], metric: str) -> Verdict:
    """Returns which group has the best mean, and the p-value of every other one against it.

    Where all have predictions of the same examples, the test is the paired bootstrap over examples and seeds; else the
    paired t-test (scipy.stats.ttest_rel) over the seeds that two groups share. p-values are two-sided and corrected for
    their number by Holm (1979).

    Raises:
      UserError: a run lacks the metric.
    """
    means = {each.name: (each, statistic(each, metric).mean) for each in groups}
    having = [(each, mean) for each, mean in means.values() if math.isfinite(mean)]
    if not having:
        return Verdict(metric, "", "", {}, 0, 0, "it is defined in no run that is complete")
    if len(having) > 1 and _constant([mean for _, mean in having]):
        return Verdict(metric, "", "", {}, 0, 0, "all have the same")
    best, _ = (min if lower_is_better(metric) else max)(having, key=lambda pair: pair[1])
    others = [each for each, _ in having if each is not best]
    if not others:
        return Verdict(metric, best.name, "", {}, 0, 0, "there is nothing to compare it with")
    shared = {each.name: sorted(best.complete.keys() & each.complete.keys()) for each in others}
    seeds = min(map(len, shared.values()))
    if not seeds:
        return Verdict(metric, best.name, "", {}, 0, 0, "they share no seed")
    drawn = _bootstrapped(best, others, metric, shared)
    if drawn is not None:
        p_values, examples = drawn
        return Verdict(metric, best.name, BOOTSTRAP, holm(p_values), examples, seeds)
    if seeds < 2:
        return Verdict(metric, best.name, "", {}, 0, seeds, "one seed says nothing of others")
    if all(_constant([*each.values(metric).values()]) for each in (best, *others)):
        level = [each.name for each, mean in having if _constant([mean, means[best.name][1]])]
        if len(level) > 1:
            return Verdict(metric, "", "", {}, 0, seeds, f"{' and '.join(level)} have the same, which is the best")
        return Verdict(metric, best.name, "", {}, 0, seeds, "it is the same for every seed")
    tested = {each.name: _t_test(best, each, metric, shared[each.name]) for each in others}
    return Verdict(metric, best.name, T_TEST, holm(tested), 0, seeds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Returns p-values corrected for their number: the smallest of m times m, the next one times m - 1, ..., none
    smaller than the one before it, and at most 1 (Holm 1979)."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min((len(p_values) - rank) * p_values[name], 1.0))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _bootstrapped(
    best: Group, others: Sequence[Group], metric: str, shared: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float], int] | None:
    """Returns (name -> p-value, number of examples); None where predictions do not give the metric."""
    name, first = last_name(metric), next(iter(best.complete.values()))
    task = first.config.get("task.name", first.config.get("finetune.task.name"))
    if metric not in (f"finetune.{name}", f"int8.{name}") or task not in KINDS:
        return None
    runs = [run for each in (best, *others) for run in each.complete.values()]
    if not all(run.predictions(metric).is_file() for run in runs):
        return None
    lines = {run.folder: read_jsonl(run.predictions(metric)) for run in runs}
    p_values, examples = {}, 0
    for other in others:
        pairs = [(lines[best.complete[seed].folder], lines[other.complete[seed].folder]) for seed in shared[other.name]]
        try:
            found = compare(KINDS[task], pairs, (name,))
        except UserError:  # not the same examples, or lines without labels
            return None
        if name not in found:
            return None
        p_values[other.name], examples = found[name]["p_value"], found["examples"]
    return p_values, examples


def _t_test(best: Group, other: Group, metric: str, seeds: Sequence[int]) -> float:
    from scipy import stats

    a, b = (np.array([each.values(metric)[seed] for seed in seeds]) for each in (best, other))
    if _constant(a - b):  # a coincidence of few seeds, which t would take for certainty
        return 1.0
    return float(stats.ttest_rel(a, b).pvalue)


def _constant(values: Sequence[float] | np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-9 * np.max(np.abs(values)))
