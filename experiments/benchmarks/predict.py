"""The predictor beside ONNX Runtime, OpenVINO and PyTorch: one fine-tuned model, the same texts, on CPU.

    python experiments/benchmarks/predict.py --run=runs/movie_sentiment/seed_0 --peers_python=PYTHON_OF_THE_OTHERS \\
        [--python311=PYTHON_WITH_ANOTHER_JAX] [--engines=ours,openvino] [--threads=2] [--quick]

`--run` is the folder of a finished fine-tuning of a BERT, of one seed. `--peers_python` has torch, transformers 5,
onnx, onnxscript, onnxruntime, openvino, nncf and absl-py; what it exports of the model, and how, is in
`predict_peers.py`. Each engine has a process of its own, with as many threads as `--threads` says, and they take turns,
measure by measure and round by round, so that all have the machine as it is at that time. Cost: about 40 minutes on two
cores, and 15 GB of memory; a tenth of the time with `--quick`, whose numbers only say that all of it works.

Files are the run's test texts, and posts to news groups cut at 512 tokens. Every engine reads them sorted by length,
in batches of the size that is its fastest of four ("batch"): rows, and of ours tokens, for it makes batches of so
many, and computes several of them at once, as OpenVINO does in `streams`; it pads to one of 27 lengths. Before
anything is timed, all must read the same tokens, and predict what ours does in float32: the float ones nearly the same
logits, int8 nearly all the labels.

How to read it: `texts/s` of a file from strings to labels, and in parentheses how many times as many as OpenVINO in
int8, the median over rounds of what both had in the same round; above 1x, the line is ahead. `model` is the same
without tokenising, to logits, of the others from batches that are padded already, and `tokenising` alone in
milliseconds a file. `1 x 128` and `32 x 128` are tokens without padding, to logits; `one text` is a test text of its
own length, from string to label; median and 99th percentile. `load` is from the libraries imported to the model ready
(ours with its default buckets, all compiled), `first answer` from the start of the process to the first label, each in
the first process, whose compilation cache is empty, and in later ones; `memory` the peak of a process once it has read
both files in batches of 32 (ours of 2,048 tokens). `same` is the share of the test texts with the label of ours in
float32, `off` the largest difference of a logit, in standard deviations of them. `streams` is OpenVINO with a batch a
thread at once.
"""

from __future__ import annotations

import time

START = time.perf_counter()  # of the process, before any library is loaded

import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import peers  # noqa: E402
import predict_peers as others  # noqa: E402
import tables  # noqa: E402
from absl import app, flags  # noqa: E402

RUN = flags.DEFINE_string("run", "", "The folder of a fine-tuning, of one seed.")
PEERS = flags.DEFINE_string("peers_python", "", "Python that has the other libraries; without it they are left out.")
PYTHON311 = flags.DEFINE_string("python311", "", "Another Python that has this package's dependencies: a second table.")
ENGINES = flags.DEFINE_list("engines", [], "Only those whose names begin so.")
INPUTS = flags.DEFINE_enum("inputs", "percentile", ["absmax", "percentile", "mse"], "compress.inputs, of static int8.")
SMOOTH = flags.DEFINE_float("smooth", 0.5, "compress.smooth, likewise.", 0, 1)
THREADS = flags.DEFINE_integer("threads", 2, "Of every engine.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each measure has on each side.", lower_bound=1)
QUICK = flags.DEFINE_bool("quick", False, "200 test texts, 16 posts, 2 rounds at most, fewer sizes and calls.")
FOLDER = flags.DEFINE_string("folder", "", "For the processes of this script: models and texts.")
LOADING = flags.DEFINE_bool("loading", False, "For them: load, predict one text, and end.")
OURS = ("ours float32", "ours bfloat16", "ours int8", "ours int8, static")
MARK, EXACT = "openvino int8", "ours float32"
TEST, POSTS = "test texts", "posts"
SHARED, MAX_LENGTH, LOADS = 32, 512, 2
LENGTHS = (*range(8, 64, 4), *range(64, 128, 16), *range(128, 256, 32), *range(256, 512, 64))  # of our programs
MODULES = {
    "ours": ("lepton_jax.infer",),
    "onnxruntime": ("tokenizers", "onnxruntime"),
    "openvino": ("tokenizers", "openvino"),
    "pytorch": ("tokenizers", "torch", "transformers.models.bert.modeling_bert"),
}


def prepare(folder: Path) -> dict[str, Any]:
    """Writes texts and models, those of others too; returns what is to be said of them."""
    import dataclasses

    from lepton_jax import hub
    from lepton_jax.config import CompressConfig, DataConfig
    from lepton_jax.core.fields import build
    from lepton_jax.data import sources, splits
    from lepton_jax.stages.compression import quantised
    from lepton_jax.workdir import read_json

    config: DataConfig = build(DataConfig, read_json(Path(RUN.value) / "config.json")["config"]["data"], "config.data")
    data = splits.load_splits(config, "classes")
    bundle = hub.rescaled(hub.load(RUN.value))
    bundle = dataclasses.replace(bundle, card=dataclasses.replace(bundle.card, max_length=MAX_LENGTH))
    hub.write(folder / "float32", bundle)
    hub.save(folder / others.CHECKPOINT, bundle)
    static = build(CompressConfig, {"method": "int8", "inputs": INPUTS.value, "smooth": SMOOTH.value}, "compress")
    hub.write(folder / "int8", quantised(bundle, CompressConfig(method="int8"), data.train))
    hub.write(folder / "int8, static", quantised(bundle, static, data.train))
    chosen = data.test.some(200) if QUICK.value else data.test
    posts = sources.load("tfds:newsgroups:test", label=None).some(16 if QUICK.value else 96)
    texts = {
        "files": {TEST: chosen.texts, POSTS: posts.texts},
        "labels": [bundle.card.labels.index(label) for label in chosen.labels or ()],
        "calibration": data.train.some(static.texts).texts,
        "model": {"layers": bundle.config.num_layers, "heads": bundle.config.num_heads,
                  "width": bundle.config.hidden_size},
        "names": bundle.card.labels,
    }  # fmt: skip
    (folder / "texts.json").write_text(json.dumps(texts))
    return texts


def ours(form: str, folder: Path) -> Callable[[int], others.Engine]:
    """This package, by its public functions."""
    from lepton_jax import infer
    from lepton_jax.config import InferConfig
    from lepton_jax.data.rows import Rows

    where = folder / (form if form.startswith("int8") else "float32")
    precision: Any = form.split(",")[0]
    names = json.loads((folder / "texts.json").read_text())["names"]

    def sized(size: int) -> others.Engine:
        """`size` is of rows of 64 tokens; longer ones are fewer, and shorter ones more."""
        if LOADING.value:
            predictor = infer.load(where, precision)  # with all its programs
        else:
            lengths = (32, 64, 128, 256) if QUICK.value else LENGTHS
            config = InferConfig(lengths=lengths, batch_tokens=64 * size)
            predictor = infer.load(where, precision, config, compiled=False)

        def run(made: list[Rows]) -> list[np.ndarray]:
            (rows,) = made
            return [np.stack(predictor.run(rows)[0])]

        return others.Engine(
            encode=lambda texts: list(predictor.encode(texts).rows.ids),
            pad=Rows,
            run=run,
            predict=lambda texts: [names.index(found["label"]) for found in predictor(texts)],
            fixed=lambda batch: lambda: run([batch]),
            whole=True,
        )

    return sized


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory() -> float:
    """Returns the most MiB that this program had in memory; what getrusage says may be of the one that started it."""
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def run_side(side: str) -> None:
    """Loads an engine and measures it, each measure in a turn of its own; answers with all of them, in seconds.

    Its logits lie in the folder once the first turn is over.
    """
    folder, library = Path(FOLDER.value), side.split(" ")[0]
    form = side.removeprefix(f"{library} ")
    stored = json.loads((folder / "texts.json").read_text())
    files: dict[str, list[str]] = stored["files"]
    for module in MODULES[library]:
        peers.load(module)
    start = time.perf_counter()
    sized = ours(form, folder) if library == "ours" else others.opener(side, folder, MAX_LENGTH, THREADS.value)
    engines = {SHARED: sized(SHARED)}
    engine = engines[SHARED]
    found: dict[str, Any] = {"load": time.perf_counter() - start}
    engine.predict(files[TEST][:1])
    found["first"] = time.perf_counter() - START
    if LOADING.value:
        peers.answer(found)
        return
    ids = {name: engine.encode(texts) for name, texts in files.items()}
    for name, texts in files.items():
        logits = others.logits(engine, ids[name], SHARED)
        np.savez(folder / f"{side} {name}.npz", logits=logits, tokens=np.concatenate(ids[name]))
        if np.mean(logits.argmax(-1) == engine.predict(texts)) < 0.99:
            raise SystemExit(f"the labels of {name} are not those of the largest logits")
    found["memory"] = peak_memory()
    peers.wait()

    found["batch"] = {}
    for name, rows in ids.items():
        times: dict[int, float] = {}
        for size in (8, SHARED) if QUICK.value else (8, 16, SHARED, 64):
            engines.setdefault(size, sized(size))
            made = [batch for _, batch in others.batches(engines[size], rows, size)]
            engines[size].run(made)
            times[size] = timed(lambda size=size, made=made: engines[size].run(made))
            peers.wait()
        found["batch"][name] = min(times, key=times.__getitem__)
    engines = {size: engines[size] for size in {SHARED, *found["batch"].values()}}

    long = [row[:128] for row in ids[POSTS] if len(row) >= 128]
    count = 5 if QUICK.value else 25  # calls of a round
    calls = {
        f"{rows} x 128": engine.fixed(engine.pad([long[row % len(long)] for row in range(rows)])) for rows in (1, 32)
    }
    single = [files[TEST][row] for row in np.linspace(0, len(files[TEST]) - 1, count).astype(int)]
    for call in (*calls.values(), *([lambda text=text: engine.predict([text]) for text in single])):
        call()  # warms up
    seconds: dict[str, list[Any]] = {}

    def measure(name: str, call: Callable[[], Any], calls: int = 0) -> None:
        """Adds a round: its seconds, or those of each call."""
        if calls:
            call()  # what the turns of others pushed out of the caches is not the question
        seconds.setdefault(name, []).append([timed(call) for _ in range(calls)] if calls else timed(call))
        peers.wait()

    for _ in range(min(ROUNDS.value, 2) if QUICK.value else ROUNDS.value):
        for name, texts in files.items():
            best = found["batch"][name]
            made = [batch for _, batch in others.batches(engines[best], ids[name], best)]
            measure(f"{name} tokens", lambda texts=texts: engine.encode(texts))
            measure(f"{name} model", lambda made=made, best=best: engines[best].run(made))
            measure(f"{name} whole", lambda texts=texts, best=best: engines[best].predict(texts))
        measure("1 x 128", calls["1 x 128"], count)
        measure("32 x 128", calls["32 x 128"], 3)
        order = iter(single * 2)
        measure("one text", lambda order=order: engine.predict([next(order)]), count)
    peers.answer(found | {"seconds": seconds})


def check(name: str, folder: Path, files: dict[str, list[str]]) -> dict[str, float]:
    """Returns `same` and `off` of the test texts, once the logits of a side are found to be those of the same job."""
    found = {}
    for file in files:
        sides = [np.load(folder / f"{side} {file}.npz") for side in (EXACT, name)]
        if not np.array_equal(*(side["tokens"] for side in sides)):
            raise SystemExit(f"{name}, {file}: it reads other tokens than {EXACT}: not the same job")
        exact, own = (side["logits"] for side in sides)
        same = float(np.mean(exact.argmax(-1) == own.argmax(-1)))
        off = float(np.abs(exact - own).max() / exact.std())
        least, most = (1.0, 1e-3) if "float32" in name else (0.97, 0.3) if "bfloat16" in name else (0.9, np.inf)
        if not (same >= least and off <= most):
            raise SystemExit(f"{name}, {file}: {same:.1%} of the labels are those of {EXACT}, and a logit is off by "
                             f"{off:.2g} standard deviations: not the same job")  # fmt: skip
        found[file] = {"same": same, "off": off}
    return found[TEST]


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def report(found: dict[str, Any], texts: dict[str, Any], folder: Path) -> None:
    """Prints the tables of some sides."""

    def show(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        tables.show([dict(zip(head, line, strict=True)) for line in lines])

    def ratio(name: str, measure: str) -> str:
        """Returns how many times as fast a side is as the mark."""
        if MARK not in found or name == MARK:
            return ""
        own, mark = (np.array(found[side]["seconds"][measure]) for side in (name, MARK))
        return f" ({np.median(mark / own):.2f}x)"

    for file, own in texts["files"].items():
        lines = []
        for name, side in found.items():
            rates = {kind: len(own) / np.median(side["seconds"][f"{file} {kind}"])
                     for kind in ("whole", "model")}  # fmt: skip
            lines.append([
                name, *(f"{rate:,.0f}{ratio(name, f'{file} {kind}')}" for kind, rate in rates.items()),
                f"{side['batch'][file]}" if not name.startswith("ours") else f"{64 * side['batch'][file]} tokens",
                f"{1e3 * np.median(side['seconds'][f'{file} tokens']):.0f} ms",
            ])  # fmt: skip
        show((f"{len(own)} {file}", "texts/s", "model", "batch", "tokenising"), lines)
    lines = []
    for name, side in found.items():
        cells = [name]
        for measure in ("1 x 128", "one text", "32 x 128"):
            calls = 1e3 * np.array(side["seconds"][measure])
            tail = f", {np.percentile(calls, 99):.1f}" if measure != "32 x 128" else ""
            own, mark = (np.median(found[each]["seconds"][measure], axis=1) if each in found else 0.0
                         for each in (name, MARK))  # fmt: skip
            cells.append(f"{np.median(calls):.1f}{tail} ms"
                         + (f" ({np.median(mark / own):.2f}x)" if MARK in found and name != MARK else ""))  # fmt: skip
        lines.append(cells)
    show(("", "1 x 128: median, 99%", "one text: median, 99%", "32 x 128"), lines)
    lines = []
    for name, side in found.items():
        logits = np.load(folder / f"{name} {TEST}.npz")["logits"]
        quality = np.mean(logits.argmax(-1) == np.array(texts["labels"]))
        cold, *warm = side["loads"]
        times = [f"{cold[kind]:.1f}, {np.median([each[kind] for each in warm]):.1f} s" for kind in ("load", "first")]
        lines.append([
            name, f"{side['size']:.0f} MB", *times, f"{side['memory']:,.0f} MiB", f"{quality:.1%}",
            f"{side['same']:.1%}", f"{side['off']:.2g}",
        ])  # fmt: skip
    show(("", "size", "load: first, again", "first answer", "memory", "accuracy", "same", "off"), lines)


def size_of(name: str, folder: Path) -> float:
    if name in others.FILES:
        return sum(megabytes(folder / file) for file in others.FILES[name])
    form = name.removeprefix("ours ")
    return megabytes(folder / (form if form.startswith("int8") else "float32") / "params")


def chosen(names: Sequence[str]) -> list[str]:
    kept = [name for name in names if not ENGINES.value or name.startswith(tuple(ENGINES.value))]
    return [name for name in names if name in kept or name in (MARK, EXACT)]


def main(argv: list[str]) -> None:
    if peers.SIDE.value == "export":
        stored = json.loads((Path(FOLDER.value) / "texts.json").read_text())
        model, calibration = stored["model"], stored["calibration"]
        peers.answer(others.export(Path(FOLDER.value), **model, texts=calibration, max_length=MAX_LENGTH))
        return
    if peers.SIDE.value:
        run_side(peers.SIDE.value)
        return
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # the other Pythons may lack us
    os.environ |= dict.fromkeys(("PJRT_NPROC", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), str(THREADS.value))
    with tempfile.TemporaryDirectory() as folder:
        # Empty at first, so that what compiling costs is seen.
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{folder}/xla", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                       "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}  # fmt: skip
        run(str(Path(argv[0]).resolve()), Path(folder))


def run(script: str, folder: Path) -> None:
    """Prepares, and compares ours with the others, and with OpenVINO alone once more where there is another Python."""
    texts = prepare(folder)
    common = [f"--folder={folder}", f"--threads={THREADS.value}", f"--rounds={ROUNDS.value}", f"--quick={QUICK.value}"]
    theirs = chosen(others.PEERS) if PEERS.value else []
    if theirs:
        versions = peers.ask("export", PEERS.value, script, *common)
        print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {THREADS.value} threads")
    for python in filter(None, (sys.executable, PYTHON311.value)):
        if python != sys.executable:
            theirs = [name for name in theirs if name.startswith(MARK)]
            print(f"\nours with {python}:")
        sides = dict.fromkeys(chosen(OURS), python) | dict.fromkeys(theirs, PEERS.value)
        report(compare(sides, script, common, texts, folder), texts, folder)


def compare(
    sides: dict[str, str], script: str, common: Sequence[str], texts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Returns what each side, name -> its Python, measured."""
    loads: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(2 if QUICK.value else LOADS):
        for name, python in sides.items():
            loads[name].append(peers.ask(name, python, script, *common, "--loading"))
    working = {name: peers.Peer(name, python, script, *common) for name, python in sides.items()}
    for side in working.values():
        side.turn()
    found: dict[str, Any] = {name: check(name, folder, texts["files"]) for name in working}
    while any("seconds" not in each for each in found.values()):
        for name, side in working.items():
            found[name] |= side.turn() or {}
    for name, each in found.items():
        each |= {"loads": loads[name], "size": size_of(name, folder)}
    return found


if __name__ == "__main__":
    app.run(main)
