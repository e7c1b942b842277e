"""The engines of `predict.py`: one model in one form behind the same four functions, whichever library computes it.

Those of other libraries get what their own documents advise: ONNX Runtime a graph with fused attention, layer norms and
GELU, and int8 weights a channel; OpenVINO int8 weights and inputs by `nncf`, calibrated, what is not quantised in
bfloat16 where the CPU has it, and where a shape is fixed a model for that shape; PyTorch SDPA in inference mode.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers

Ids = list[np.ndarray]  # of each text, int [n]
PEERS = (
    "onnxruntime float32", "onnxruntime int8", "openvino float32", "openvino bfloat16", "openvino int8",
    "openvino int8, streams", "pytorch float32", "pytorch bfloat16",
)  # fmt: skip
# What `prepare` of predict.py writes, and `export` below.
CHECKPOINT, ONNX = "transformers", "model.onnx"
FILES = {
    "onnxruntime float32": ("ort_float32.onnx",),
    "onnxruntime int8": ("ort_int8.onnx",),
    "openvino float32": ("ov_float32.xml", "ov_float32.bin"),
    "openvino int8": ("ov_int8.xml", "ov_int8.bin"),
    "pytorch float32": (f"{CHECKPOINT}/model.safetensors",),
}
FILES["openvino bfloat16"] = FILES["openvino float32"]
FILES["openvino int8, streams"] = FILES["openvino int8"]
FILES["pytorch bfloat16"] = FILES["pytorch float32"]


@dataclasses.dataclass(frozen=True)
class Engine:
    """One model, ready to predict, with one size of batches."""

    encode: Callable[[Sequence[str]], Ids]
    pad: Callable[[Ids], Any]  # rows of one batch -> what `run` takes
    run: Callable[[list[Any]], list[np.ndarray]]  # batches -> logits [N, C] of each, N >= its rows
    predict: Callable[[Sequence[str]], list[int]]  # texts -> the number of the label of each
    fixed: Callable[[Any], Callable[[], Any]]  # a batch -> what computes it, made for this shape
    whole: bool = False  # whether it takes all rows at once, and makes batches of them by itself


def batches(engine: Engine, ids: Ids, size: int) -> list[tuple[list[int], Any]]:
    """Returns (the numbers of its rows, what `run` takes) of each batch: rows sorted by length, so little is padded."""
    order = np.argsort([len(row) for row in ids], kind="stable").tolist()
    size = len(order) if engine.whole else size
    chosen = [order[start : start + size] for start in range(0, len(order), size)]
    return [(rows, engine.pad([ids[row] for row in rows])) for rows in chosen]


def logits(engine: Engine, ids: Ids, size: int) -> np.ndarray:
    """Returns [len(ids), C] in the order of `ids`."""
    made = batches(engine, ids, size)
    outputs = engine.run([batch for _, batch in made])
    found = [(row, output[place]) for (rows, _), output in zip(made, outputs, strict=True)
             for place, row in enumerate(rows)]  # fmt: skip
    return np.stack([output for _, output in sorted(found, key=lambda pair: pair[0])])


def opener(name: str, folder: Path, max_length: int, threads: int) -> Callable[[int], Engine]:
    """Loads an engine of another library, and returns what gives it a size of batches."""
    tokenizer = peers.load("tokenizers").Tokenizer.from_file(f"{folder}/{CHECKPOINT}/tokenizer.json")
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    library, form = name.split(" ", 1)
    run, fixed = {"onnxruntime": _onnxruntime, "openvino": _openvino, "pytorch": _pytorch}[library](
        form, folder, threads
    )

    def encode(texts: Sequence[str]) -> Ids:
        return [np.array(each.ids, np.int64) for each in tokenizer.encode_batch_fast(list(texts))]

    def pad(ids: Ids) -> dict[str, np.ndarray]:
        table = np.zeros((len(ids), max(map(len, ids))), np.int64)  # [PAD] has id 0
        mask = np.zeros_like(table)
        for row, own in enumerate(ids):
            table[row, : len(own)], mask[row, : len(own)] = own, 1
        return {"input_ids": table, "attention_mask": mask}

    def sized(size: int) -> Engine:
        def predict(texts: Sequence[str]) -> list[int]:
            return logits(engine, encode(texts), size).argmax(-1).tolist()

        engine = Engine(encode, pad, run, predict, fixed or (lambda batch: functools.partial(run, [batch])))
        return engine

    return sized


Runs = tuple[Callable[[list[Any]], list[np.ndarray]], Callable[[Any], Callable[[], Any]] | None]


def _onnxruntime(form: str, folder: Path, threads: int) -> Runs:
    runtime = peers.load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    (file,) = FILES[f"onnxruntime {form}"]
    session = runtime.InferenceSession(f"{folder}/{file}", options, providers=["CPUExecutionProvider"])
    return (lambda made: [session.run(None, batch)[0] for batch in made]), None


def _openvino(form: str, folder: Path, threads: int) -> Runs:
    openvino = peers.load("openvino")
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "PERFORMANCE_HINT": "LATENCY"}
    if form == "float32":
        options["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the CPU has it
    elif form == "bfloat16":
        options["INFERENCE_PRECISION_HINT"] = "bf16"
    streams = form.endswith("streams")  # several batches at once, each by one thread
    if streams:
        options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads}
    graph = core.read_model(f"{folder}/{FILES[f'openvino {form}'][0]}")
    compiled = core.compile_model(graph, "CPU", options)
    request = compiled.create_infer_request()

    def run(made: list[Any]) -> list[np.ndarray]:
        return [request.infer(batch)[0].copy() for batch in made]

    def run_at_once(made: list[Any]) -> list[np.ndarray]:
        outputs: list[Any] = [None] * len(made)

        def keep(done: Any, place: int) -> None:
            outputs[place] = done.get_output_tensor().data.copy()

        queue = openvino.AsyncInferQueue(compiled, threads)
        queue.set_callback(keep)
        for place, batch in enumerate(made):
            queue.start_async(batch, place)
        queue.wait_all()
        return outputs

    def fixed(batch: Any) -> Callable[[], Any]:
        shaped = core.read_model(f"{folder}/{FILES[f'openvino {form}'][0]}")
        shaped.reshape({name: array.shape for name, array in batch.items()})
        own = core.compile_model(shaped, "CPU", options).create_infer_request()
        return lambda: own.infer(batch)[0].copy()

    return (run_at_once if streams else run), fixed


def _pytorch(form: str, folder: Path, threads: int) -> Runs:
    torch, transformers = peers.load("torch"), peers.load("transformers")
    torch.set_num_threads(threads)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(f"{folder}/{CHECKPOINT}", dtype=getattr(torch, form)).eval()

    def run(made: list[Any]) -> list[np.ndarray]:
        with torch.inference_mode():
            return [
                model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.float().numpy()
                for batch in made
            ]

    return run, None


def export(folder: Path, layers: int, heads: int, width: int, texts: Sequence[str], max_length: int) -> dict[str, str]:
    """Writes the model of `transformers` in the forms that the engines read; returns the versions of the libraries.

    Args:
      folder: has the model.
      layers, heads, width: its sizes.
      texts: to calibrate int8 on.
      max_length: of a text, in tokens.
    """
    names = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf")
    torch, transformers, onnx, _, openvino, nncf = map(peers.load, names)
    auto = transformers.AutoModelForSequenceClassification
    # Fused attention is found in the graph of eager attention that torch.jit traces.
    model = auto.from_pretrained(f"{folder}/{CHECKPOINT}", attn_implementation="eager", return_dict=False).eval()
    ids = torch.randint(1000, 2000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    inputs, free = ["input_ids", "attention_mask"], {0: "rows", 1: "length"}
    torch.onnx.export(
        model, (ids, mask), f"{folder}/{ONNX}", input_names=inputs, output_names=["logits"],
        dynamic_axes={name: free for name in inputs}, opset_version=17, dynamo=False,
    )  # fmt: skip
    _export_onnxruntime(folder, layers, heads, width, onnx)
    graph = openvino.convert_model(f"{folder}/{ONNX}")
    openvino.save_model(graph, f"{folder}/ov_float32.xml", compress_to_fp16=False)
    engine = opener("onnxruntime float32", folder, max_length, 1)(1)
    rows = [engine.pad([row]) for row in engine.encode(texts)]
    int8 = nncf.quantize(graph, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(int8, f"{folder}/ov_int8.xml")
    versions = {name: peers.load(name).__version__ for name in names}
    return versions | {"openvino": openvino.__version__.split("-")[0]}


def _export_onnxruntime(folder: Path, layers: int, heads: int, width: int, onnx: Any) -> None:
    optimizer, quantization = map(peers.load, ("onnxruntime.transformers.optimizer", "onnxruntime.quantization"))
    fused = optimizer.optimize_model(
        f"{folder}/{ONNX}", model_type="bert", num_heads=heads, hidden_size=width, opt_level=0
    )
    found = fused.get_fused_operator_statistics()
    wanted = {"Attention": layers, "BiasGelu": layers, "SkipLayerNormalization": 2 * layers}
    if any(found[name] != count for name, count in wanted.items()):
        raise SystemExit(f"ONNX Runtime's optimizer fuses {found}, not {wanted}: this would be no fair comparison")
    fused.save_model_to_file(f"{folder}/ort_float32.onnx")
    quantization.quantize_dynamic(
        f"{folder}/ort_float32.onnx", f"{folder}/ort_int8.onnx", weight_type=quantization.QuantType.QInt8,
        per_channel=True, reduce_range=False,  # all of 8 bits, which is for CPUs with VNNI
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
