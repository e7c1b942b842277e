"""The stage compare, of pretrainings and of runs that differ in more than one figure."""

from __future__ import annotations

import io

import numpy as np
import pytest
import rich.console
from made import make_run, tuned
from scipy import stats

from lepton_jax import report, stages
from lepton_jax.config import default_config, resolve
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once
LOSSES = {"a": [2.0, 2.3, 2.1], "b": [1.7, 1.9, 1.85]}


@pytest.fixture
def pretrained(tmp_path):
    for name, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            summary = {
                "pretrain.validation_loss": loss, "pretrain.masked_accuracy": 0.3 + loss / 100,
                "pretrain.tokens_per_second": 900.0, f"pretrain.only_{name}": 1.0, "wall_seconds": 60.0,
            }  # fmt: skip
            changes = {"train.seed": seed, "optim.name": "adamw" if name == "a" else "muon"}
            make_run(tmp_path / name / str(seed), summary, changes, "pretrain")
    return tmp_path


def compare(folder, a, b, name="compare"):
    config = default_config("compare")
    config.a, config.b = a, b
    return stages.run(resolve(config), folder / name)


def test_pretrainings_over_seeds_have_the_interval_of_the_paired_t_test(pretrained):
    summary = compare(pretrained, f"{pretrained}/a", f"{pretrained}/b")
    paired = stats.ttest_rel(LOSSES["b"], LOSSES["a"])
    assert summary["compare.validation_loss_difference"] == pytest.approx(np.mean(LOSSES["b"]) - np.mean(LOSSES["a"]))
    assert summary["compare.validation_loss_difference_interval"] == pytest.approx(
        list(paired.confidence_interval(0.95))
    )
    assert summary["compare.interval"] == "95%, by the paired t-test over seeds" and summary["compare.seeds"] == 3
    assert summary["compare.config"] == [{"field": "optim.name", "a": "adamw", "b": "muon"}]
    shared = {line["metric"]: line for line in summary["compare.metrics"]}
    assert set(shared) == {"pretrain.validation_loss", "pretrain.masked_accuracy", "pretrain.tokens_per_second",
                           "wall_seconds"}, "of both"  # fmt: skip
    assert shared["wall_seconds"] == {"metric": "wall_seconds", "a": 60, "b": 60, "difference": 0, "low": 0, "high": 0}
    page = (pretrained / "compare" / "report.html").read_text()
    assert "<td>optim.name</td><td>&quot;adamw&quot;</td>" in page and "pretrain.tokens_per_second" in page
    assert compare(pretrained, ",".join(f"{pretrained}/a/{seed}" for seed in (2, 0, 1)), f"{pretrained}/b", "again")[
        "compare.validation_loss_difference_interval"
    ] == pytest.approx(list(paired.confidence_interval(0.95)))


def test_one_seed_has_no_interval_and_says_so(pretrained):
    summary = compare(pretrained, f"{pretrained}/a/0", f"{pretrained}/b/0")
    assert summary["compare.interval"] == "none, of one seed each"
    assert summary["compare.validation_loss_difference"] == pytest.approx(-0.3)
    assert not [name for name in summary if name.endswith("interval") and name != "compare.interval"]


def test_the_terminal_shows_configs_and_all_metrics(pretrained):
    summary = compare(pretrained, f"{pretrained}/a", f"{pretrained}/b")
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    for table in report.comparison_tables(summary):
        console.print(table)
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert 'optim.name "adamw" "muon"' in lines and "wall_seconds 60.0 s 60.0 s 0.0 s 0.0 s 0.0 s" in lines
    assert any(line.startswith("pretrain.masked_accuracy 32.1% 31.8% -0.3%") for line in lines)
    assert report.comparison_tables({"finetune.accuracy": 0.5}) == []


def test_fine_tunings_show_their_other_metrics_too(tmp_path):
    make_run(tmp_path / "a", changes={"train.steps": 5}, **tuned(0.7, 0))
    make_run(tmp_path / "b", **tuned(0.9, 1))
    summary = compare(tmp_path, f"{tmp_path}/a", f"{tmp_path}/b")
    low, high = summary["compare.accuracy_difference_interval"]
    assert 0 < low < summary["compare.accuracy_difference"] < high
    assert summary["compare.interval"] == "95%, by a paired bootstrap over examples"
    assert {"field": "train.steps", "a": 5, "b": 1000} in summary["compare.config"]
    assert [line["metric"] for line in summary["compare.metrics"]] == [
        "finetune.accuracy",
        "finetune.loss",
        "wall_seconds",
    ]


def test_what_does_not_compare(pretrained, tmp_path):
    def refused(a, b, message):
        with pytest.raises(UserError, match=message):
            compare(pretrained, f"{pretrained}/{a}", f"{pretrained}/{b}", "no")
        assert not (pretrained / "no" / "summary.json").exists()

    make_run(pretrained / "masked", {"pretrain.validation_loss": 1.0}, {"task.mask_rate": 0.3}, "pretrain")
    make_run(pretrained / "tuned", **tuned(0.7, 0))
    make_run(pretrained / "half", None, {}, "pretrain")
    refused("a/0", "masked", r"config\.task\.mask_rate is 0\.15 in \S+a/0, 0\.3 in \S+masked")
    refused("a", "b/0", r"config\.b='\S+': has 1 seeds, config\.a has 3; as many are needed")
    refused("a/0", "tuned", r"config\.b='\S+': predicts classes, config\.a tokens")
    refused("a/0", "half", r"config\.b='\S+': \S+half is not complete")
    refused(
        "?/0", "b", r"config\.a='\S+': holds runs that differ by more than their seeds, such as optim\.name='adamw'"
    )
    refused("nothing", "b", r"config\.a='\S+': \S+nothing: no such folder")
    (pretrained / "tuned" / "predictions.jsonl").unlink()
    refused("tuned", "tuned", r"config\.a='\S+': no predictions\.jsonl in")
