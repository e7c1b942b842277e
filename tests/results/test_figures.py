"""Figures as descriptions, and what is drawn of them."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from made import make_run, make_sweep, tuned

from lepton_jax import results
from lepton_jax.core.errors import UserError
from lepton_jax.results import canvas, figures, plots
from lepton_jax.results.figures import Bars, Curves, Lines, Pareto, Scaling

pytestmark = pytest.mark.once
ALL = (Curves(), Bars("finetune.accuracy"), Lines("train.learning_rate", "finetune.accuracy", "model.gated", True),
       Pareto("wall_seconds", "finetune.accuracy"), Scaling("finetune.loss", "", "train.steps"))  # fmt: skip


def history(name, seed):
    offset = ord(name[-1]) / 100 + 0.1 * seed
    return [{"step": 1, "loss": 3.0}, *({"step": step, "validation/loss": 1 / step + offset} for step in (1, 2, 4))]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Twelve settings of two seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    variants = {
        f"rate {rate}, gated {gated}": {"train.learning_rate": rate, "model.gated": gated, "train.steps": steps}
        for steps, rate in enumerate((1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), 1) for gated in (False, True)
    }  # fmt: skip
    return make_sweep(folder, variants, lambda name, seed: tuned(
        0.6 + 0.02 * list(variants).index(name), seed, wall_seconds=100.0 - list(variants).index(name) % 5
    ) | {"metrics": history(name, seed)}, seeds=2)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(sweep):
    runs = results.find(sweep)
    return {type(figure): plots.draw(figure, runs) for figure in ALL}


def test_descriptions_come_back_from_json():
    trees = json.loads(json.dumps(figures.to_json(ALL)))
    assert trees[1] == {"kind": "bars", "metric": "finetune.accuracy"} and figures.from_json(trees) == list(ALL)
    assert len({figures.file_name(figure) for figure in ALL}) == len(ALL)
    assert figures.file_name(Curves()) == "curves_validation_loss"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "bar", "metric": "x"}, r"figures\[0\]\.kind='bar': unknown figure; did you mean \"bars\"\?"),
        ({"kind": "zzz"}, r"unknown figure; known: bars, curves, lines, pareto, scaling"),
        ({"metric": "x"}, r"must be an object with a kind"), ("bars", "must be an object with a kind"),
        ({"kind": "bars"}, r"figures\[0\]: a figure 'bars' needs the field 'metric'"),
        ({"kind": "bars", "metrics": "x", "metric": "y"}, r"figures\[0\]\.metrics: unknown field"),
        ({"kind": "lines", "x": "a", "y": "b", "log_x": "yes"}, r"figures\[0\]\.log_x='yes': must be of type bool"),
    ],
)  # fmt: skip
def test_what_is_no_figure_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        figures.from_json([tree])


def test_an_experiment_lists_figures_alone():
    with pytest.raises(UserError, match=r"FIGURES\[1\]='bars': must be one of Curves, Bars, Lines, Pareto, Scaling"):
        figures.to_json([Curves(), "bars"])


def test_curves_are_means_and_bands_over_seeds(drawn, sweep):
    (axes,) = drawn[Curves].axes
    assert len(axes.lines) == 12
    steps, values = axes.lines[0].get_data()
    wanted = [np.mean([line["validation/loss"] for seed in (0, 1) for line in history("False", seed)
                       if line["step"] == step and "validation/loss" in line]) for step in (1, 2, 4)]  # fmt: skip
    assert steps.tolist() == [1, 2, 4] and values.tolist() == pytest.approx(wanted)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() - values[0] == pytest.approx(np.std([0, 0.1], ddof=1), rel=1e-5)


def test_twelve_settings_are_told_apart_without_colour(drawn):
    (axes,) = drawn[Curves].axes
    looks = {(line.get_marker(), str(line._dash_pattern)) for line in axes.lines}  # of a line, there is no other door
    assert len(looks) == 12
    (legend,) = drawn[Curves].legends
    names = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert len(set(names)) == 12 and names[0] == "rate 1e-05, gated False"
    drawn[Curves].savefig(io.BytesIO(), format="png")
    inside = drawn[Curves].bbox.padded(1)
    for text in legend.get_texts():
        box = text.get_window_extent()
        assert inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1), "no name is cut off"


def test_bars_are_means_with_each_seed(drawn, sweep):
    (axes,) = drawn[Bars].axes
    first = [run.number("finetune.accuracy") * 100 for run in results.find(sweep)][:2]
    bar = axes.patches[0]
    assert bar.get_x() + bar.get_width() == pytest.approx(np.mean(first))
    assert axes.lines[-12].get_xdata().tolist() == pytest.approx(first) and axes.get_xlabel().startswith("accuracy, %")


def test_bars_that_are_near_each_other_say_where_they_begin(sweep):
    runs = [run for run in results.find(sweep) if run.name.startswith("rate 0.003")]
    (axes,) = plots.draw(Bars("finetune.accuracy"), runs).axes
    assert axes.get_xlim()[0] > 50 and f"the axis begins at {axes.get_xlim()[0]:.4g}" in axes.get_xlabel()
    (axes,) = plots.draw(Bars("finetune.loss"), results.find(sweep)).axes
    assert axes.get_xlim()[0] == 0 and axes.get_xlabel() == "loss"


def test_lines_are_apart_by_a_field(drawn, sweep):
    (axes,) = drawn[Lines].axes
    assert [line.get_label() for line in axes.lines] == ["gated off", "gated on"] and axes.get_xscale() == "log"
    x, y = axes.lines[1].get_data()
    found = [run.number("finetune.accuracy") for run in results.find(sweep) if run.name == "rate 1e-05, gated True"]
    assert x.tolist() == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3] and y[0] == pytest.approx(100 * np.mean(found))


def test_all_examples_are_as_many_as_there_were(tmp_path):
    for count in (100, 0):
        make_run(tmp_path / str(count), {"finetune.accuracy": 0.5, "finetune.data": {"train": {"examples": 950}}},
                 {"data.max_examples": count})  # fmt: skip
    (axes,) = plots.draw(Lines("data.max_examples", "finetune.accuracy", log_x=True), results.find(tmp_path)).axes
    assert axes.lines[0].get_xdata().tolist() == [100, 950]
    with pytest.raises(UserError, match=r"train\.seed=0 has no place on a logarithmic axis"):
        plots.draw(Lines("train.seed", "finetune.accuracy", log_x=True), results.find(tmp_path))


def test_the_front_is_what_no_other_point_beats():
    draw = np.random.default_rng(0)
    costs = draw.integers(0, 6, (40, 2))
    slow = [not any((other <= point).all() and (other < point).any() for other in costs) for point in costs]
    assert plots.front(costs).tolist() == slow and 0 < sum(slow) < 40
    assert plots.front(np.array([[1, 1], [1, 1]])).tolist() == [True, True]


def test_pareto_labels_do_not_cover_each_other(drawn):
    (axes,) = drawn[Pareto].axes
    front = next(line for line in axes.lines if len(line.get_xdata()) > 1)
    x, y = front.get_data()
    assert (np.diff(x) > 0).all() and (np.diff(y) > 0).all(), "less time, less accuracy"
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12 and [text.get_text() for text in axes.texts if text.get_text() == "12"]
    overlapping = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)]
    assert not overlapping and "lower is better" in axes.get_xlabel() and "higher is better" in axes.get_ylabel()


def test_few_points_have_their_names_beside_them(sweep):
    runs = [run for run in results.find(sweep) if run.name.startswith(("rate 0.003", "rate 1e-05"))]
    (axes,) = plots.draw(Pareto("wall_seconds", "finetune.accuracy"), runs).axes
    assert {text.get_text() for text in axes.texts} == {run.name for run in runs}


@pytest.mark.parametrize("floor", [1.5, 0.0])
def test_a_law_is_drawn_with_its_numbers(tmp_path, floor):
    for parameters in (1e6, 4e6, 1.6e7):
        for tokens in (10, 40, 160):
            loss = floor + 300 / parameters**0.4 + 2 / tokens**0.3
            summary = {"pretrain.validation_loss": loss, "pretrain.parameters": int(parameters)}
            changes = {"train.steps": tokens, "model.hidden_size": int(parameters / 1e4)}
            make_run(tmp_path / f"{parameters}_{tokens}", summary, changes, "pretrain")
    figure = Scaling("pretrain.validation_loss", "pretrain.parameters", "train.steps")
    (axes,) = plots.draw(figure, results.find(tmp_path)).axes
    assert axes.get_title().startswith(f"{'1.5 + ' if floor else ''}300 / $N^{{0.40}}$ + 2 / $D^{{0.30}}$\n")
    with pytest.raises(UserError, match="needs parameters, tokens or both"):
        plots.draw(Scaling("pretrain.validation_loss"), results.find(tmp_path))


def test_figures_are_files_of_three_forms_the_same_each_time(drawn, tmp_path):
    first = canvas.save(drawn[Bars], tmp_path / "a", "bars")
    again = canvas.save(drawn[Bars], tmp_path / "b", "bars")
    starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    assert [path.suffix[1:] for path in first] == list(starts)
    for path, other in zip(first, again, strict=True):
        assert path.read_bytes() == other.read_bytes() and path.read_bytes().startswith(starts[path.suffix[1:]])


def test_steps_are_whole_numbers():
    plot, axes = canvas.steps(4.0, "loss")
    axes.plot([0, 1, 2], [3.0, 2.0, 1.0])
    canvas.encoded(plot, "svg")
    shown = axes.get_xticks()
    assert len(shown) > 1 and all(tick == round(tick) for tick in shown)


def test_names_may_need_a_second_font(monkeypatch):
    monkeypatch.setattr(canvas, "_FAMILIES", ("DejaVu Sans", "not installed", "STIXGeneral"))
    plot, axes = canvas.figure(4.0, "x", "y")
    missing = "\u24d0"  # which STIX has alone
    axes.set_title(missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph ... missing from font(s)"
        canvas.encoded(plot, "png")
    monkeypatch.setattr(canvas, "_FAMILIES", ("DejaVu Sans",))
    with pytest.warns(UserWarning, match="missing from font"):
        canvas.encoded(plot, "png")


def test_drawing_leaves_no_global_state(drawn):
    import matplotlib

    before = dict(matplotlib.rcParams)
    canvas.encoded(drawn[Bars], "svg")
    assert dict(matplotlib.rcParams) == before
    sources = [path.read_text() for path in Path(canvas.__file__).parent.glob("*.py")]
    assert len(sources) > 8 and not [source for source in sources if "pyplot" in source]


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (Curves("validation/f1"), r"no run logged 'validation/f1'; logged are loss, validation/loss"),
        (Bars("finetune.f1"), r"has no metric 'finetune\.f1'; it has finetune\.accuracy"),
        (Lines("train.step", "finetune.accuracy"), r"has no field 'train\.step'; did you mean"),
        (Pareto("seconds", "finetune.accuracy"), r"has no metric 'seconds'"),
        (Scaling("finetune.loss", tokens="task.name"), r"task\.name='classification' is no number"),
    ],
)  # fmt: skip
def test_what_runs_lack_is_not_drawn(sweep, figure, message):
    with pytest.raises(UserError, match=message):
        plots.draw(figure, results.find(sweep))


def test_nothing_is_drawn_of_nothing(tmp_path):
    make_run(tmp_path / "a")
    with pytest.raises(UserError, match="no run is complete"):
        plots.draw(Curves(), results.find(tmp_path))
