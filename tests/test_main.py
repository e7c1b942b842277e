"""The command line: what is wrong ends as one line and exit code 2, and nothing that was written is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from lepton_jax import infer, main
from lepton_jax.core.errors import UserError

pytestmark = pytest.mark.once

CONFIGS = Path(__file__).parent.parent / "configs"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    line = [sys.executable, "-m", "lepton_jax.main", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=CONFIGS.parent)


def only_line(stderr: str) -> str:
    assert stderr.startswith("lepton_jax: error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr.removeprefix("lepton_jax: error: ").rstrip("\n")


@pytest.fixture
def run(monkeypatch, capsys):
    """Returns a function that runs the command in this process and gives its exit code and stderr.

    The flags are parsed by `main._parse`, as in a process of its own; only absl's set-up of a process is left out.
    """

    def call(*arguments: str) -> tuple[int, str]:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:  # overrides of the call before
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])  # from which overrides are read
        capsys.readouterr()
        try:
            main._run(main._parse(sys.argv))
        except SystemExit as error:
            return int(error.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


# In a process of its own, for the exit code and for what the libraries may add to stderr.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/quickstart.py"], "--config=configs/NAME.py and --workdir=DIR are both needed"),
        (["--workdir=DIR"], "--config=configs/NAME.py and --workdir=DIR are both needed"),
        (["--config=nowhere.py", "--workdir=DIR"], "nowhere.py"),
        (["--config=configs/quickstart.py", "--workdir=DIR", "--config.pretrain.model.hiden_size=64"],
         'config.pretrain.model.hiden_size: unknown field; did you mean "hidden_size"?'),
        (["--config=configs/quickstart.py", "--workdir=DIR", "--config.pretrain.data.max_length=100000"],
         "config.pretrain.data.max_length=100000: longer than the model; at most model.max_positions="),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_code_2(tmp_path, arguments, message):
    done = command(*(argument.replace("DIR", str(tmp_path / "run")) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert message in only_line(done.stderr)
    assert contents(tmp_path) == {}


def test_an_error_in_the_data_is_one_line_and_code_2(tmp_path, recipe):
    (tmp_path / "empty.txt").write_text("\n \n\n")
    path = recipe("pretrain", data__train=f"text:{tmp_path}/empty.txt")
    done = command(f"--config={path}", f"--workdir={tmp_path}/run")
    assert done.returncode == 2 and done.stdout == ""
    assert only_line(done.stderr) == f"text:{tmp_path}/empty.txt: holds no text"


# In this process.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.model.hidden_size=64"],
            "a quickstart has config.pretrain.model.hidden_size or config.finetune.model",
        ),
        (["--config.pretrain.train.steps=many"], "config.pretrain.train.steps='many': must be of type int"),
        (["--config.pretrain.model=3"], "config.pretrain.model='3': is a section; set one of its fields: vocab_size"),
        (["--config.pretrain.modle.hidden_size=3"], 'config.pretrain.modle: unknown field; did you mean "model"?'),
        (["--config.pretrain.model.dropout=1.5"], "config.pretrain.model.dropout=1.5: must be in [0, 1)"),
        (
            ["--config.finetune.model.num_heads=3"],
            "config.finetune.model.num_heads=3: must divide model.hidden_size=16",
        ),
        (["--wrkdir=a"], "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
        (["extra"], "'extra' is not a flag; a field is set by --config.section.field=value"),
        (
            ["--config.pretrain.mesh.shape=data=3"],
            "config.mesh.shape='data=3': the sizes must multiply to the 8 devices",
        ),
    ],
)
def test_a_wrong_override_is_one_line(run, recipe, tmp_path, arguments, message):
    path = recipe("quickstart")
    before = contents(tmp_path)
    code, stderr = run(f"--config={path}", f"--workdir={tmp_path}/run", *arguments)
    assert code == 2 and message in only_line(stderr)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("recipe", "known"), [("gpt2", "base, large, small, tiny"), ("quickstart", "en, zh")])
def test_an_argument_that_a_recipe_does_not_know_is_one_line(run, tmp_path, recipe, known):
    path = Path(__file__).parent.parent / "configs" / f"{recipe}.py"
    code, stderr = run(f"--config={path}:huge", f"--workdir={tmp_path}/run")
    line = only_line(stderr)
    assert code == 2 and "Traceback" not in line and f"configs/{recipe}.py:huge: unknown" in line and known in line


def test_an_override_reaches_the_run(run, recipe, tmp_path, monkeypatch):
    from lepton_jax import stages

    seen = []
    monkeypatch.setattr(stages, "run", lambda config, workdir: seen.append((config, workdir)) or {"a.b": 1})
    for value in ("3", "4"):
        arguments = (f"--config.pretrain.train.steps={value}", "--config.finetune.data.text=review")
        assert run(f"--config={recipe('quickstart')}", "--workdir=somewhere", *arguments) == (0, "")
    (first, where), (second, _) = seen
    assert (first.pretrain.train.steps, second.pretrain.train.steps, where) == (3, 4, "somewhere")
    assert first.finetune.data.text == "review" and first.finetune.train.steps == 12


BAD_DATA = {
    "unknown stage": ({"stage": "pretran"}, "config.stage='pretran': unknown stage; did you mean \"pretrain\"?"),
    "empty corpus": ({"data__train": "jsonl:DIR/empty.jsonl"}, "jsonl:DIR/empty.jsonl: holds no labelled text"),
    "no such file": ({"data__train": "jsonl:DIR/nowhere.jsonl"}, "jsonl:DIR/nowhere.jsonl: no such file"),
    "label column missing": (
        {"data__label": "lable"}, "labelled.jsonl:1: no column 'lable'; set data.label to one of 'text', 'label'"),
    "text column missing": (
        {"data__text": "review"}, "labelled.jsonl:1: no column 'review'; set data.text to one of 'text', 'label'"),
    "one class only": (
        {"data__train": "jsonl:DIR/one.jsonl"}, "every label in the column 'label' is 'good'; classification needs"),
    "not UTF-8": (
        {"data__train": "jsonl:DIR/latin.jsonl"}, "DIR/latin.jsonl:2: byte 0xe9 at offset 44 is not UTF-8"),
    "not a number": (
        {"task__name": "regression"}, "regression needs a finite number"),
    "longer than the model": (
        {"data__max_length": 17}, "config.data.max_length=17: longer than the model; at most model.max_positions=16"),
    "training batch and mesh": (
        {"train__batch_size": 12}, "config.train.batch_size=12: must be a multiple of 8, the mesh's rows (data x"),
    "accumulated batch and mesh": (
        {"train__accumulate": 4},
        "batch_size=16: must be a multiple of 32, the mesh's rows (data x fsdp) times train.accumulate=4"),
    "evaluation batch and mesh": (
        {"evaluate__batch_size": 20}, "config.evaluate.batch_size=20: must be a multiple of 8"),
    "attention and device": (
        {"model__attention": "splash"}, "config.model.attention='splash': it is for TPUs; choose 'xla', or 'auto'"),
    "more rows than data": (
        {"train__batch_size": 800}, "fewer than one batch of 800; use more data or train.batch_size of at most"),
    "vocabulary and corpus": (
        {"data__tokenizer_size": 100_000}, "data.tokenizer_size=100000: too many for this corpus, which gives at most"),
    "no tokenizer": (
        {"data__tokenizer": "wordpiece"},
        "data.tokenizer='wordpiece': must be one of 'unigram', 'bpe', 'char', a tokenizer's folder, or a checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_input_is_one_line_and_touches_nothing(run, recipe, tmp_path, name):
    rows = [json.dumps({"text": f"a text {index}", "label": "good"}) for index in range(40)]
    (tmp_path / "one.jsonl").write_text("\n".join(rows))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "fine", "label": "a"}\n{"text": "caf\xe9", "label": "b"}\n')
    changes, message = BAD_DATA[name]
    changes = {
        key: value.replace("DIR", str(tmp_path)) if isinstance(value, str) else value for key, value in changes.items()
    }
    path = recipe("finetune", **changes)
    before = contents(tmp_path)
    code, stderr = run(f"--config={path}", f"--workdir={tmp_path}/run")
    assert code == 2 and message.replace("DIR", str(tmp_path)) in only_line(stderr)
    after = contents(tmp_path)
    assert {key: after[key] for key in before} == before
    # What cannot be known before the data are read leaves the run's description, and nothing trained.
    assert {Path(key).name for key in after.keys() - before.keys()} <= {
        "config.json", "model.json", "tokenizer.model", "tokenizer.sha256"
    }  # fmt: skip


BAD_CORPUS = {
    "a filter that leaves nothing": (
        {"data__min_characters": 5000}, "data.min_characters=5000: leaves none of the 3"),
    "a mixture with a missing source": (
        {"data__train": "text:DIR/one.txt,text:DIR/two.txt", "data__weights": (0.5, 0.5)},
        "text:DIR/two.txt: no such file, and no file matches it as a glob"),
    "more sources than weights": (
        {"data__train": "text:DIR/one.txt,text:DIR/one.txt", "data__weights": (1.0,)},
        "data.weights=(1.0,): 1 weights, but data.train names 2 sources; give one each"),
    "a weight of nothing": (
        {"data__weights": (0.0,)}, "config.data.weights=(0.0,): each must be above 0"),
    "less than a batch": (
        {"data__train": "text:DIR/one.txt", "data__validation": "text:DIR/other.txt", "data__tokenizer": "TOKENIZER"},
        "the training data fill 1 rows of 16 tokens when packed, fewer than one batch of 16; use more data or"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CORPUS)
def test_a_bad_corpus_is_one_line(run, recipe, quickstart, tmp_path, name):
    (tmp_path / "one.txt").write_text("a few words")
    (tmp_path / "other.txt").write_text("some others")
    changes, message = BAD_CORPUS[name]
    here = {"DIR": str(tmp_path), "TOKENIZER": str(quickstart / "pretrain")}

    def fill(value):
        for word, path in here.items():
            value = value.replace(word, path) if isinstance(value, str) else value
        return value

    path = recipe("pretrain", **{key: fill(value) for key, value in changes.items()})
    code, stderr = run(f"--config={path}", f"--workdir={tmp_path}/run")
    assert code == 2 and fill(message) in only_line(stderr)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_are_for_pretraining(run, recipe, tmp_path):
    code, stderr = run(f"--config={recipe('finetune', data__weights=(1.0,))}", f"--workdir={tmp_path}/run")
    assert code == 2 and "config.data.weights=(1.0,): is for the stage 'pretrain'" in only_line(stderr)


def test_a_shard_that_was_cut_short_is_one_line(run, recipe, quickstart, tmp_path, monkeypatch):
    from lepton_jax.stages import training

    def fit(*arguments, **options):
        raise UserError("now it would train")

    monkeypatch.setattr(training.Trainer, "fit", fit)
    changes = {"data__cache": str(tmp_path / "cache"), "data__tokenizer": str(quickstart / "pretrain")}
    path = recipe("pretrain", **changes)
    assert only_line(run(f"--config={path}", f"--workdir={tmp_path}/run")[1]) == "now it would train"
    shard = max((tmp_path / "cache" / "encoded").glob("*/*.array_record"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size - 100)
    code, stderr = run(f"--config={path}", f"--workdir={tmp_path}/run")
    line = only_line(stderr)
    assert code == 2 and line.startswith(f"{shard}: is damaged (") and f"delete the folder {shard.parent}" in line
    shutil.rmtree(shard.parent)
    assert only_line(run(f"--config={path}", f"--workdir={tmp_path}/run")[1]) == "now it would train"


def test_a_mixture_is_trained_on_and_reported(run, recipe, corpus, quickstart, tmp_path):
    (tmp_path / "own.txt").write_text("\n\n".join(f"number {number} of a few" for number in range(40)))
    path = recipe("pretrain", train__steps=2, data__tokenizer=str(quickstart / "pretrain"))
    train = f"text:{corpus}/text.txt,text:{tmp_path}/own.txt"
    arguments = (f"--config.data.train={train}", "--config.data.weights=(1, 3)")
    assert run(f"--config={path}", f"--workdir={tmp_path}/run", *arguments) == (0, "")
    tokens = json.loads((tmp_path / "run" / "summary.json").read_text())["pretrain.data"]["tokens"]
    assert [each["source"] for each in tokens["sources"]] == train.split(",")
    assert [each["share_of_training"] for each in tokens["sources"]] == [0.25, 0.75]
    assert tokens["share_of_positions"] > 0.9
    page = (tmp_path / "run" / "report.html").read_text()
    assert "share of training" in page and "75.0%" in page and f"text:{tmp_path}/own.txt" in page


def test_a_folder_with_another_runs_config_is_refused_and_left_as_it_is(run, recipe, quickstart):
    before = contents(quickstart)
    code, stderr = run(f"--config={recipe('quickstart', pretrain__train__seed=5)}", f"--workdir={quickstart}")
    assert (
        code == 2
        and f"{quickstart}: holds a run with another config (pretrain.train.seed=0 there, 5 here)" in only_line(stderr)
    )
    code, stderr = run(f"--config={recipe('pretrain')}", f"--workdir={quickstart}")
    assert code == 2 and f"{quickstart}: holds a run with another config (stage='quickstart' there" in only_line(stderr)
    assert contents(quickstart) == before


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(run, recipe, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    code, stderr = run(f"--config={recipe('pretrain')}", f"--workdir={tmp_path}/home")
    assert code == 2 and "holds 'thesis.tex' but no config.json" in only_line(stderr)
    assert contents(tmp_path / "home") == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("item", ["params", "rest", "manifest.json"])
def test_a_truncated_checkpoint_is_refused_and_left_as_it_is(run, recipe, quickstart, tmp_path, item):
    folder = tmp_path / "run"
    shutil.copytree(quickstart / "pretrain", folder)
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    step = folder / "checkpoints" / "8"
    files = [path for path in [step / item, *(step / item).rglob("*")] if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    os.truncate(victim, victim.stat().st_size // 2)
    before = contents(folder)
    code, stderr = run(f"--config={recipe('pretrain')}", f"--workdir={folder}")
    assert code == 2
    line = only_line(stderr)
    assert str(victim) in line and "no other step is saved: start again in another workdir" in line
    assert contents(folder) == before


@pytest.mark.parametrize("where", ["checkpoints", "int8"])
def test_inference_refuses_a_truncated_model(quickstart, tmp_path, where):
    folder = tmp_path / "run"
    shutil.copytree(quickstart / "finetune", folder)
    arrays = folder / where / ("12/params" if where == "checkpoints" else "params")
    victim = max((path for path in arrays.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(victim, victim.stat().st_size - 1)
    before = contents(folder)
    with pytest.raises(UserError, match=rf"{victim}: damaged \(\d+ bytes instead of \d+\)") as caught:
        infer.load(folder if where == "checkpoints" else folder / "int8", "int8")
    assert "\n" not in str(caught.value) and contents(folder) == before


def test_a_dry_run_prints_its_table_and_nothing_of_a_folder(recipe, tmp_path):
    done = command(f"--config={recipe('pretrain')}", f"--workdir={tmp_path}/run", "--config.dry_run=True")
    assert done.returncode == 0, done.stderr
    assert "needed gib" in done.stdout and "flops per token" in done.stdout and "report.html" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_sigterm_ends_with_code_0_and_the_command_goes_on(recipe, tmp_path):
    file, folder = recipe("pretrain", train__steps=100_000, train__log_every=1), tmp_path / "run"
    line = [sys.executable, "-m", "lepton_jax.main", f"--config={file}", f"--workdir={folder}"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CONFIGS.parent)
    while running.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.1)
    running.terminate()
    out, errors = running.communicate(timeout=100)
    assert running.returncode == 0, errors
    assert re.search(r"run: stopped by SIGTERM, [1-9]\d* of 100000 steps are done and saved; the same command", out)
    steps = {int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()}
    assert f" {max(steps)} of 100000" in out and not (folder / "summary.json").exists()


@pytest.mark.parametrize("name", ["splits.load_splits", "report.write_report"])
def test_sigterm_before_or_after_training_ends_with_code_0_and_the_command_goes_on(recipe, tmp_path, name):
    file, folder = recipe("pretrain"), tmp_path / "run"
    line = [f"--config={file}", f"--workdir={folder}"]
    script = f"""
import os, signal, sys
from lepton_jax import main, report
from lepton_jax.data import splits
def stopped(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    raise SystemExit("it went on")
{name} = stopped
main.main()
"""
    done = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{folder}: stopped by SIGTERM; the same command goes on"
    assert (folder / "config.json").exists() and not (folder / "summary.json").exists()
    again = [sys.executable, "-m", "lepton_jax.main", *line]
    subprocess.run(again, check=True, capture_output=True, cwd=CONFIGS.parent)
    assert (folder / "summary.json").exists()


def test_a_finished_run_shows_its_summary(run, recipe, quickstart, monkeypatch):
    shown = []
    monkeypatch.setattr("builtins.print", lambda *parts, **_: shown.append(" ".join(map(str, parts))))
    monkeypatch.setattr("rich.console.Console.print", lambda self, table: shown.append(table.title))
    assert run(f"--config={recipe('quickstart')}", f"--workdir={quickstart}") == (0, "")
    assert shown == ["Summary", "Predictions", f"more in {quickstart}/report.html"]
