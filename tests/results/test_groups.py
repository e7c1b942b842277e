"""Statistics over seeds: against NumPy and SciPy, and what a verdict says when."""

from __future__ import annotations

import numpy as np
import pytest
from made import make_run, make_sweep, tuned
from scipy import stats

from lepton_jax import results
from lepton_jax.core.errors import UserError
from lepton_jax.results.groups import BOOTSTRAP, T_TEST, group, holm, judge, statistic

pytestmark = pytest.mark.once
LOSSES = {"a": [2.0, 2.2, 2.1], "b": [1.5, 1.8, 1.7], "c": [1.51, 1.79, 1.69]}


def groups_of(folder, values, metric="pretrain.validation_loss"):
    make_sweep(folder, {name: {} for name in values},
               lambda name, seed: {"summary": {metric: values[name][seed]}}, stage="pretrain")  # fmt: skip
    return group(results.find(folder))


def test_means_and_deviations_are_numpys(tmp_path):
    groups = groups_of(tmp_path, LOSSES)
    for each in groups:
        found = statistic(each, "pretrain.validation_loss")
        assert found.mean == pytest.approx(np.mean(LOSSES[each.name])) and found.n == 3
        assert found.std == pytest.approx(np.std(LOSSES[each.name], ddof=1))
    assert [each.name for each in groups] == ["a", "b", "c"] and groups[1].values("pretrain.validation_loss")[1] == 1.8


def test_the_t_test_is_scipys_and_corrected(tmp_path):
    verdict = judge(groups_of(tmp_path, LOSSES), "pretrain.validation_loss")
    plain = {name: stats.ttest_rel(LOSSES["c"], LOSSES[name]).pvalue for name in ("a", "b")}
    assert (verdict.best, verdict.test, verdict.seeds) == ("c", T_TEST, 3), "of a loss the lowest is the best"
    assert plain["a"] < 0.05 < plain["b"], "they differ in what is tested"
    assert verdict.p_values == pytest.approx({"a": 2 * plain["a"], "b": plain["b"]}) and not verdict.sure


def test_one_is_surely_the_best_only_against_every_other(tmp_path):
    values = {"a": [0.70, 0.72, 0.71], "b": [0.80, 0.83, 0.815], "c": [0.60, 0.62, 0.64]}
    groups = groups_of(tmp_path, values, "pretrain.masked_accuracy")
    verdict = judge(groups, "pretrain.masked_accuracy")
    assert verdict.best == "b" and verdict.sure, "of an accuracy the highest is the best"
    assert not judge(groups[:1], "pretrain.masked_accuracy").sure, "of nothing, none is better"


def test_holms_correction():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0} and holm({"a": 0.03}) == {"a": 0.03} and holm({}) == {}


def test_predictions_of_the_same_examples_are_drawn(tmp_path):
    quality = {"low": 0.70, "high": 0.85, "near": 0.84}
    make_sweep(
        tmp_path, {name: {} for name in quality}, lambda name, seed: tuned(quality[name], 10 * seed + ord(name[0]))
    )
    groups = group(results.find(tmp_path))
    verdict = judge(groups, "finetune.accuracy")
    assert (verdict.test, verdict.examples, verdict.seeds) == (BOOTSTRAP, 400, 3)
    best = verdict.best
    assert best in ("high", "near") and verdict.p_values["low"] < 0.01 and not verdict.sure
    assert judge([each for each in groups if each.name in (best, "low")], "finetune.accuracy").sure
    assert judge(groups, "finetune.loss").test != BOOTSTRAP, "a loss is in no prediction"
    for each in groups:  # one seed each: the test is about these models, which the verdict says by its number of seeds
        object.__setattr__(each, "runs", each.runs[:1])
    verdict = judge(groups, "finetune.accuracy")
    assert verdict.test == BOOTSTRAP and verdict.seeds == 1 and not judge(groups, "finetune.loss").test


def test_predictions_of_other_examples_are_not(tmp_path):
    def run(name, seed):
        made = tuned(0.7 if name == "a" else 0.8, seed)
        return made | {"predictions": made["predictions"][name == "a" :]}

    make_sweep(tmp_path, {"a": {}, "b": {}}, run)
    assert judge(group(results.find(tmp_path)), "finetune.accuracy").test == T_TEST


def test_groups_are_paired_by_the_seeds_that_they_share(tmp_path):
    values = {"a": {0: 1.0, 1: 1.2, 2: 1.1, 5: 9.0}, "b": {1: 1.0, 2: 1.05, 0: 0.9, 7: 0.1}}
    for name, each in values.items():
        for seed, loss in each.items():
            changes = {"train.steps": ord(name), "train.seed": seed}
            make_run(tmp_path / f"{name}{seed}", {"pretrain.validation_loss": loss}, changes, "pretrain")
    verdict = judge(group(results.find(tmp_path)), "pretrain.validation_loss")
    paired = stats.ttest_rel([values["a"][seed] for seed in range(3)], [values["b"][seed] for seed in range(3)])
    assert verdict.seeds == 3 and list(verdict.p_values.values()) == [pytest.approx(paired.pvalue)]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"a": [1.0] * 3, "b": [2.0] * 3}, "it is the same for every seed"),
        ({"a": [1.0, 1.1, 1.2]}, "there is nothing to compare it with"),
        ({"a": [1.0] * 3, "b": [2.0] * 3, "c": [1.0] * 3}, "a and c have the same, which is the best"),
        ({"a": [1.0, 2.0, 3.0], "b": [3.0, 2.0, 1.0]}, "all have the same"),
        ({"a": [None] * 3, "b": [None] * 3}, "it is defined in no run that is complete"),
    ],
)
def test_without_a_test_there_is_a_reason(tmp_path, values, reason):
    verdict = judge(groups_of(tmp_path, values), "pretrain.validation_loss")
    assert (verdict.test, verdict.reason, verdict.sure) == ("", reason, False)


def test_a_coincidence_of_two_seeds_is_no_certainty(tmp_path):
    def run(name, seed):
        return {"summary": {"pretrain.validation_loss": 1.0 + 0.1 * seed + (name == "b")}}

    make_sweep(tmp_path, {"a": {}, "b": {}}, run, seeds=2, stage="pretrain")
    verdict = judge(group(results.find(tmp_path)), "pretrain.validation_loss")
    assert verdict.test == T_TEST and verdict.p_values == {"b": 1.0}


def test_a_run_that_is_not_defined_is_not_left_out_of_a_mean(tmp_path):
    groups = groups_of(tmp_path, {"a": [1.0, float("nan"), 1.2], "b": [2.0, 2.1, 2.3]})
    assert np.isnan(statistic(groups[0], "pretrain.validation_loss").mean)
    assert judge(groups, "pretrain.validation_loss").best == "b"


def test_unfinished_runs_count_in_nothing(tmp_path):
    make_sweep(tmp_path, {"a": {}, "b": {}}, lambda name, seed: None if seed == 2 else tuned(0.8, seed))
    groups = group(results.find(tmp_path))
    assert statistic(groups[0], "finetune.accuracy").n == 2 and len(groups[0].runs) == 3
    with pytest.raises(UserError, match=r"has no metric 'finetune\.f1'; it has finetune\.accuracy"):
        judge(groups, "finetune.f1")


def test_the_same_seed_twice_is_refused(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, {"finetune.accuracy": 0.5})
    with pytest.raises(UserError, match=r"b: is 'finetune' with seed 0, as \S+a is; leave one out"):
        group(results.find(tmp_path))
    (tmp_path / "b" / "summary.json").unlink()
    assert len(group(results.find(tmp_path))) == 1
