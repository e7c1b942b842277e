from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import rich.console
from pages import Page

from lepton_jax import config, workdir
from lepton_jax.core.errors import UserError
from lepton_jax.report import examples_table, summary_table, write_report
from lepton_jax.train.logging import MetricsLogger

pytestmark = pytest.mark.once

SUMMARY = {
    "pretrain.loss_first": 9.01234,
    "pretrain.tokens_per_second": 18234.2,
    "pretrain.parameters": 1234567,
    "finetune.accuracy": 0.7654,
    "finetune.evaluated_on": "test",
    "finetune.data": {"train": {"duplicate_texts": 12}},
    "int8.size_ratio": 3.891,
    "wall_seconds": 287.12,
    "finetune.f1": None,
}


def make_run(folder: Path, predictions: list[dict[str, Any]] = (), **fields: Any) -> Path:  # type: ignore[assignment]
    tree = config.default_config("finetune")
    tree.update({"task": {"name": "classification"}, "data": {"train": "jsonl:train.jsonl"}} | fields)
    workdir.claim(folder, config.resolve(tree))
    with MetricsLogger(folder, 4, 100, quiet=True) as logger:
        for step in range(1, 5):
            logger.log(step, {"loss": 1 / step, "learning_rate": 0.1 * step})
        logger.log(4, {"loss": 0.5, "accuracy": 0.875}, prefix="validation")
    with open(folder / "predictions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    return folder


def line(text: str, label: Any, prediction: Any, score: float = 0.9) -> dict[str, Any]:
    return {"text": text, "label": label, "prediction": prediction, "score": score}


def page(tmp_path: Path, runs: dict[str, Path], summary: dict[str, Any] | None = None) -> Page:
    write_report(tmp_path / "report.html", runs, SUMMARY if summary is None else summary)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    found = page(tmp_path, {"pretrain": make_run(tmp_path / "a"), "finetune": make_run(tmp_path / "b")})
    assert (
        not found.links
        and len(found.images) == 4
        and all(link.startswith("data:image/svg+xml;base64,") for link in found.images)
    )
    source = (tmp_path / "report.html").read_text()
    assert not re.search(r"(?i)<script|<link|@import|url\(", source)
    drawn = base64.b64decode(found.images[0].partition(",")[2]).decode()
    assert drawn.lstrip().startswith("<?xml") and "</svg>" in drawn


def test_the_loss_curves_show_what_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    loss, rate = page(tmp_path, {"a": run}).images
    assert page(tmp_path, {"a": run}).images == [loss, rate]
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "validation/loss": 0.1}\n')
    other_loss, same_rate = page(tmp_path, {"a": run}).images
    assert other_loss != loss and same_rate == rate


def test_summary_and_last_metrics_are_shown(tmp_path: Path) -> None:
    rows = page(tmp_path, {"finetune": make_run(tmp_path / "a")}).rows
    assert ["accuracy", "76.5%"] in rows and ["size ratio", "3.89x"] in rows and ["wall seconds", "287.1 s"] in rows
    assert ["finetune.data.train.duplicate_texts", "12"] in rows
    assert ["validation accuracy", "87.5%"] in rows


def test_a_confusion_matrix_counts_labels_by_predictions(tmp_path: Path) -> None:
    predictions = [*[line("t", "bad", "bad")] * 5, *[line("t", "bad", "good")] * 3, *[line("t", "good", "good")] * 8]
    rows = page(tmp_path, {"finetune": make_run(tmp_path / "a", predictions)}).rows
    at = rows.index(["", "bad", "good", "recall"])
    assert rows[at + 1 : at + 3] == [["bad", "5", "3", "62.5%"], ["good", "0", "8", "100.0%"]]


def test_many_labels_are_cut_to_the_frequent_ones(tmp_path: Path) -> None:
    predictions = [line("t", f"class {n:02d}", f"class {n:02d}") for n in range(30) for _ in range(n + 1)]
    found = page(tmp_path, {"finetune": make_run(tmp_path / "a", predictions)})
    assert "The 20 most frequent of 30 labels." in found.text
    (header,) = [row for row in found.rows if row[-1] == "recall"]
    assert header == ["", *[f"class {n:02d}" for n in range(10, 30)], "recall"]


def test_mistakes_come_most_confident_first(tmp_path: Path) -> None:
    predictions = [line(f"right {n}", "a", "a") for n in range(20)]
    predictions += [line(f"wrong {n}", "a", "b", score=n / 20) for n in range(12)]
    rows = page(tmp_path, {"finetune": make_run(tmp_path / "a", predictions)}).rows
    texts = [row[0] for row in rows if row[0].startswith(("right", "wrong"))]
    assert texts == [*[f"wrong {n}" for n in range(11, 3, -1)], *[f"right {n}" for n in range(8)]]
    assert ["wrong 11", "a", "b", "0.550"] in rows


def test_texts_and_labels_are_escaped_and_chinese_is_kept(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & \"quotes\""
    predictions = [
        line(evil, "<b>", "好评"),
        line("这部电影很好看", "好评", "好评"),
        line("long " * 200, "好评", "<b>"),
    ]
    run = make_run(tmp_path / "a", predictions)
    found = page(tmp_path, {"<i>title</i>": run}, {"<u>x</u>.accuracy": 0.5, "note": "<s>"})
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search("<script|<b>|<i>|<u>|<s>", source)
    assert evil in found.text and "<i>title</i>" in found.text and "<u>x</u>" in found.text
    assert [row for row in found.rows if row[:2] == ["这部电影很好看", "好评"]]
    assert not [row for row in found.rows if len(row[0]) > 250]


def test_numbers_get_a_scatter_plot_and_their_largest_errors(tmp_path: Path) -> None:
    predictions = [line(f"text {n}", float(n), 10.5, score=0.0) for n in range(12)]
    for prediction in predictions:
        del prediction["score"]
    found = page(tmp_path, {"finetune": make_run(tmp_path / "a", predictions)})
    assert not found.links and len(found.images) == 3 and "recall" not in found.text
    texts = [row[0] for row in found.rows if row[0].startswith("text ")]
    assert texts[:8] == [f"text {n}" for n in range(8)] and set(texts[8:10]) == {"text 10", "text 11"}


def test_config_differences_and_what_it_ran_with(tmp_path: Path) -> None:
    rows = page(tmp_path, {"finetune": make_run(tmp_path / "a", train={"seed": 7})}).rows
    assert ["train.seed", "7", "0"] in rows and ["task.name", "classification", "masked_lm"] in rows
    assert not [row for row in rows if row[0] == "train.steps"]
    record = workdir.read_json(tmp_path / "a" / "config.json")
    cells = {row[0]: row[1] for row in rows if len(row) == 2}
    assert f"jax {record['versions']['jax']}" in cells["versions"] and "cpu" in cells["devices"]
    assert {"git revision", "command"} <= cells.keys()


def test_a_run_without_metrics_or_predictions_still_has_its_section(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    (run / "predictions.jsonl").unlink()
    assert "No metrics were logged." in page(tmp_path, {"finetune": run}, {}).text


def test_a_damaged_run_is_named_and_an_old_page_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    before = page(tmp_path, {"finetune": run}).text
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"a/config\.json: cannot be read"):
        write_report(tmp_path / "report.html", {"finetune": run}, SUMMARY)
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).text == before


def test_the_table_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rich.console.Console(width=100, force_terminal=False).print(summary_table(SUMMARY | {"[bold]x.note": "[/red]"}))
    shown = [" ".join(text.split()) for text in capsys.readouterr().out.splitlines() if text.strip()]
    assert shown[3:] == [
        "pretrain loss first 9.012",
        "tokens per second 18,234",
        "parameters 1,234,567",
        "finetune accuracy 76.5%",
        "evaluated on test",
        "f1 -",
        "int8 size ratio 3.89x",
        "[bold]x note [/red]",
        "run wall seconds 287.1 s",
    ]


def test_the_texts_of_the_config_are_shown(tmp_path: Path) -> None:
    assert examples_table(tmp_path).row_count == 0
    (tmp_path / "finetune").mkdir()
    line = {"text": "a <b> film", "prediction": "positive", "score": 0.75}
    (tmp_path / "finetune" / "examples.jsonl").write_text(json.dumps(line) + "\n")
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(examples_table(tmp_path))
    assert "a <b> film   positive     0.750" in console.export_text()


def test_spans_are_marked_and_counted_by_type(tmp_path: Path) -> None:
    text = "Ann <met> Bob in Rome" + " x" * 200
    lines = [
        {"text": text, "label": [[0, 3, "PER"], [10, 13, "PER"], [17, 21, "LOC"]],
         "prediction": [[0, 3, "PER"], [17, 21, "<ORG>"]], "score": 0.5, "loss": 2.0},
        {"text": "none", "label": [], "prediction": [], "score": 1.0, "loss": 0.1},
    ]  # fmt: skip
    found = page(tmp_path, {"a": make_run(tmp_path / "a", lines, task={"name": "token_classification"})})
    assert ["PER", "2", "100.0%", "50.0%", "66.7%"] in found.rows and ["LOC", "1", "0.0%", "0.0%", "0.0%"] in found.rows
    source = (tmp_path / "report.html").read_text()
    assert (
        "<mark>Ann <small>PER</small></mark> &lt;met&gt; Bob in <mark>Rome <small>&lt;ORG&gt;</small></mark>" in source
    )
    row = next(row for row in found.rows if "PER: Ann; PER: Bob; LOC: Rome" in row)
    assert row[2:] == ["PER: Ann; <ORG>: Rome", "0.500", "2.000"]
    assert "Mistakes, the largest loss first (1 of 2)" in found.text


def test_what_a_span_holds_is_escaped(tmp_path: Path) -> None:
    text = "by <script>alert(1)</script> & co"
    lines = [{"text": text, "label": [], "prediction": [[3, 28, "ORG"]], "score": 0.5, "loss": 1.0}]
    found = page(tmp_path, {"a": make_run(tmp_path / "a", lines, task={"name": "token_classification"})})
    source = (tmp_path / "report.html").read_text()
    assert "<script" not in source and source.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert [row for row in found.rows if "ORG: <script>alert(1)</script>" in row]


def test_sets_have_a_table_of_classes(tmp_path: Path) -> None:
    lines = [line("one", ["a", "b"], ["a"]), line("two", ["a"], ["a"]), line("three", [], ["b"])]
    rows = page(tmp_path, {"a": make_run(tmp_path / "a", lines, task={"name": "multi_label"})}).rows
    assert ["a", "2", "100.0%", "100.0%", "100.0%"] in rows and ["b", "1", "0.0%", "0.0%", "0.0%"] in rows
    assert ["three", "none", "b", "0.900"] in rows


def test_mistakes_come_with_the_largest_loss_first_where_it_is_known(tmp_path: Path) -> None:
    lines = [line(f"wrong {n}", "a", "b") | {"loss": float(n)} for n in range(3)]
    rows = page(tmp_path, {"a": make_run(tmp_path / "a", lines)}).rows
    assert [row[0] for row in rows if row[0].startswith("wrong")] == ["wrong 2", "wrong 1", "wrong 0"]


def test_calibration_slices_and_seeds_are_shown(tmp_path: Path) -> None:
    bins = [{"confidence": 0.6, "accuracy": 0.5, "count": 3}, {"confidence": 0.9, "accuracy": 0.95, "count": 8}]
    slices = [{"slice": "length", "value": "1-9 characters", "examples": 4, "accuracy": 0.5}, {"slice": "label",
              "value": "a", "examples": 2, "accuracy": 0.25, "macro_f1": 0.2}]  # fmt: skip
    summary = {
        "finetune.accuracy": 0.8, "finetune.accuracy_std": 0.01, "finetune.accuracy_interval": [0.78, 0.82],
        "finetune.calibration": {"error": 0.02, "bins": bins}, "finetune.slices": slices,
    }  # fmt: skip
    found = page(tmp_path, {"a": make_run(tmp_path / "a")}, summary)
    assert ["accuracy", "80.0% \xb1 1.0% (78.0% to 82.0%)"] in found.rows and len(found.images + found.links) == 4
    assert ["label", "a", "2", "25.0%", "20.0%"] in found.rows
    assert ["length", "1-9 characters", "4", "50.0%", ""] in found.rows
    assert not [row for row in found.rows if "interval" in row[0]]


def test_a_table_of_seeds_has_what_holds_for_all(tmp_path: Path) -> None:
    seeds = [{"seed": 5 + n, "accuracy": 0.8 + n / 10, "loss": 1.0, "wall_seconds": 3.0} for n in range(2)]
    seeds[0]["int8.accuracy"] = 0.79
    summary = {
        "finetune.accuracy": 0.85, "finetune.accuracy_std": 0.07, "finetune.accuracy_interval": [0.78, 0.92],
        "finetune.loss": 1.0, "finetune.seeds": seeds, "wall_seconds": 9.0,
        "int8.accuracy": 0.8, "int8.accuracy_std": 0.01,
    }  # fmt: skip
    rows = page(tmp_path, {"a": make_run(tmp_path / "a")}, summary).rows
    at = rows.index(["", "seed 5", "seed 6", "mean", "deviation", "95%"])
    assert rows[at + 1 : at + 5] == [
        ["accuracy", "80.0%", "90.0%", "85.0%", "7.0%", "78.0% to 92.0%"], ["loss", "1", "1", "1", "", ""],
        ["wall seconds", "3.0 s", "3.0 s", "", "", ""], ["int8.accuracy", "79.0%", "", "80.0%", "1.0%", ""],
    ]  # fmt: skip


def test_comparisons_are_shares_where_their_metrics_are() -> None:
    summary = {
        "compare.accuracy_a": 0.5, "compare.accuracy_b": 0.75, "compare.accuracy_difference": 0.25,
        "compare.accuracy_difference_interval": [-0.125, 0.5], "compare.mean_squared_error_a": 0.5,
    }  # fmt: skip
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    shown = [" ".join(text.split()) for text in console.export_text().splitlines()]
    assert "accuracy b 75.0%" in shown and "accuracy difference 25.0% (-12.5% to 50.0%)" in shown
    assert "mean squared error a 0.5" in shown


def test_numbers_are_set_below_each_other(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", [line("t", "a", "b") | {"loss": 2.5}])
    page(tmp_path, {"a": run}, {"finetune.slices": [{"slice": "label", "value": "a", "examples": 12, "accuracy": 0.5}]})
    source = (tmp_path / "report.html").read_text()
    assert '<td>b</td><td class="number">0.900</td><td class="number">2.500</td>' in source
    assert '<td>label</td><td>a</td><td class="number">12</td><td class="number">50.0%</td>' in source
