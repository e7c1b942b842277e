"""One GPU, beside PyTorch with SDPA and compile: masked-LM pretraining, and prediction in int8 and bfloat16.

    python experiments/benchmarks/gpu.py [--sizes=base,large] [--lengths=512,1024] [--tokens=32768] [--steps=20] \\
        [--batches=1,32,256] [--predict_length=128] [--torch_python=PYTHON_WITH_TRANSFORMERS_5_AND_TORCH]

BERT in bfloat16 with float32 parameters, AdamW, 15% of the positions predicted, rows packed full. Ours keeps four
documents a row apart, by the backend that the door to attention picks or `--attention` names. PyTorch has the easier
task of one document a row, without any mask, in `torch.compile`d bfloat16 autocast; its head runs on the same positions
alone, as ours does. Each side and shape has a process of its own. Cost: six to nine minutes on an H100, most of it
compilation, and two or three more for prediction; `--seconds` stops before a shape that would start later.

Then the first size classifies padded texts, half as long as a row up to all of it, with random weights: ours in int8,
one scale a channel and a token, what is between the products in bfloat16; ours in bfloat16; and PyTorch, its weights in
bfloat16, by `torch.compile`. `--lengths=` leaves pretraining out, `--batches=` prediction.

How to read it: `tokens/s` from the median step; in parentheses how many times as many ours has. `utilisation` is
FLOPs by the model's shapes (`models/flops.py`) over the peak of the data sheet; both sides count the same FLOPs. Of
prediction, `texts/s` and the median call, from arrays on the host to logits there, and how many times as long PyTorch
takes, or ours in bfloat16.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START = time.perf_counter()  # of the process, before any library is loaded

import numpy as np  # noqa: E402
import peers  # noqa: E402
from absl import app, flags  # noqa: E402

SIZES = flags.DEFINE_list("sizes", ["base", "large"], "Named sizes of models/sizes.py.")
LENGTHS = flags.DEFINE_list("lengths", ["512", "1024"], "Tokens a row.")
TOKENS = flags.DEFINE_integer("tokens", 32_768, "Tokens a step; half of it for `large`.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 20, "Steps that are timed.", lower_bound=1)
BATCHES = flags.DEFINE_list("batches", ["1", "32", "256"], "Rows of the batches that are predicted.")
PREDICT_LENGTH = flags.DEFINE_integer("predict_length", 128, "Their length.", lower_bound=2)
SECONDS = flags.DEFINE_float("seconds", 560.0, "No shape starts later than this after the start.")
ATTENTION = flags.DEFINE_string("attention", "auto", "As config.model.attention.")
VOCABULARY, RATE, MASK, MASK_ID, DOCUMENTS, WARM = 30_528, 0.15, 103, 103, 4, 3
SPECIAL = (0, 100, 101, 102, 103)

Run = tuple[
    Callable[[], Any], Callable[[], None], dict[str, Any]
]  # a step, a wait for the last one, what else is known


def shape() -> tuple[str, int, int]:
    """Returns size, rows and length of this process."""
    size, length = SIZES.value[0], int(LENGTHS.value[0])
    return size, *rows_of(size, length)


def rows_of(size: str, length: int) -> tuple[int, int]:
    """Returns rows and length of a step."""
    return max((TOKENS.value // 2 if size == "large" else TOKENS.value) // length, 1), length


def settings(size: str, length: int) -> Any:
    """Returns the model: BERT's, with learned positions for the whole row."""
    from lepton_jax.config import ModelConfig
    from lepton_jax.models.sizes import SIZES as named

    attention: Any = ATTENTION.value
    return ModelConfig(
        vocab_size=VOCABULARY, max_positions=length, type_vocab_size=2, norm_position="post", norm_epsilon=1e-12,
        positions="learned", pooling="cls", dtype="bfloat16", unroll=0, attention=attention, **named[size],
    )  # fmt: skip


def tokens(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, VOCABULARY, (rows, length)).astype(np.int32)


def ours() -> Run:
    """This package: packed rows, documents apart."""
    import jax

    from lepton_jax.config import Config, DataConfig, TrainConfig
    from lepton_jax.core import sharding
    from lepton_jax.models.transformer import Transformer
    from lepton_jax.tasks.masked_lm import MaskedLM
    from lepton_jax.train import utilisation
    from lepton_jax.train.forecast import row_flops
    from lepton_jax.train.state import make_state
    from lepton_jax.train.step import make_program

    size, rows, length = shape()
    config = settings(size, length)
    model = Transformer(config, "masked_lm")
    run = Config(model=config, data=DataConfig(max_length=length), train=TrainConfig(batch_size=rows))
    task = MaskedLM(run.task, VOCABULARY, MASK_ID, SPECIAL)
    mesh = sharding.make_mesh("data=1", jax.devices()[:1])
    step, _, optimizer = make_program(run, mesh, task, model)
    state = make_state(model, optimizer, run.optim, mesh, seed=0)
    cuts = np.sort(np.random.default_rng(1).integers(1, length, (rows, DOCUMENTS - 1)), axis=1)
    segments = 1 + (np.arange(length)[None, :, None] >= cuts[:, None, :]).sum(-1)
    starts = np.maximum.accumulate(np.where(np.diff(segments, axis=1, prepend=0), np.arange(length), 0), axis=1)
    batch = {
        "token_ids": tokens(rows, length),
        "attention_mask": segments.astype(np.int32),
        "positions": (np.arange(length) - starts).astype(np.int32),
        "weight": np.ones(rows, np.float32),
    }
    batch = sharding.put_batch(batch, mesh)
    last: Any = None

    def advance() -> Any:
        nonlocal state, last
        state, last = step(state, batch)

    def wait() -> None:
        jax.block_until_ready(last)

    device = jax.devices()[0]
    peak = utilisation.peak_flops([device])
    return advance, wait, {"flops": rows * row_flops(task, model, length), "peak": peak, "device": device.device_kind}


def pytorch() -> Run:
    """PyTorch: one document a row, SDPA without a mask, `torch.compile`, the head on the masked positions alone."""
    torch, transformers = peers.load("torch"), peers.load("transformers")
    from lepton_jax.models.sizes import SIZES as named  # plain numbers, without JAX's devices

    size, rows, length = shape()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=length, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
        **{name.replace("num_layers", "num_hidden_layers").replace("num_heads", "num_attention_heads"): value
           for name, value in named[size].items()},
    )  # fmt: skip
    torch.set_float32_matmul_precision("high")
    model = transformers.BertForMaskedLM(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=device == "cuda")
    ids = torch.from_numpy(tokens(rows, length)).long().to(device)
    count = math.ceil(RATE * length)
    predict = torch.argsort(torch.rand(rows, length, device=device), dim=1)[:, :count]
    targets = torch.gather(ids, 1, predict).flatten()
    inputs = ids.scatter(1, predict, MASK)

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16):
            hidden = model.bert(inputs).last_hidden_state
            chosen = torch.gather(hidden, 1, predict[..., None].expand(-1, -1, hidden.shape[-1]))
            scores = model.cls(chosen).flatten(0, 1)
        return torch.nn.functional.cross_entropy(scores.float(), targets)

    compiled = torch.compile(loss)

    def advance() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled().backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    return advance, wait, {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and mask [rows, length] of this process's batch."""
    rows, length = int(BATCHES.value[0]), PREDICT_LENGTH.value
    lengths = np.linspace(length, length / 2, rows).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return tokens(rows, length) * mask, mask


def predict_ours(form: str) -> Run:
    """This package, with weights in a form, and bfloat16 between the products."""
    import jax

    from lepton_jax.compress import quantize_int8
    from lepton_jax.models.transformer import Transformer, init_params, unstack

    model = Transformer(settings(SIZES.value[0], PREDICT_LENGTH.value), "classification", 2)

    def make(key: jax.Array) -> Any:
        params = init_params(model, key)
        if form == "int8":
            return quantize_int8(params)
        return jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)

    params = unstack(jax.jit(make)(jax.random.key(0)))

    def forward(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        out: Any = model.apply({"params": params}, ids, mask, packed=False)
        return out["logits"]

    apply = jax.jit(forward)
    batch = texts()
    device = jax.devices()[0]
    return lambda: np.asarray(apply(params, *batch)), lambda: None, {"device": device.device_kind}


def predict_pytorch() -> Run:
    """PyTorch, with weights in bfloat16."""
    torch, transformers = peers.load("torch"), peers.load("transformers")
    from lepton_jax.models.sizes import SIZES as named

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = {name.replace("num_layers", "num_hidden_layers").replace("num_heads", "num_attention_heads"): value
            for name, value in named[SIZES.value[0]].items()}  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=PREDICT_LENGTH.value, attn_implementation="sdpa", **size
    )
    model = transformers.BertForSequenceClassification(config).to(device, torch.bfloat16).eval()
    compiled = torch.compile(lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits.float())
    batch = texts()

    def advance() -> Any:
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(array).to(device) for array in batch)
            return compiled(ids, mask).cpu()

    return advance, lambda: None, {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}


SIDES: dict[str, Callable[[], Run]] = {
    "ours": ours, "torch": pytorch,
    "ours int8": lambda: predict_ours("int8"), "ours bfloat16": lambda: predict_ours("bfloat16"),
    "torch bfloat16": predict_pytorch,
}  # fmt: skip


def run_side(side: str) -> None:
    """Answers with the milliseconds of each step, the time to the first one, and what the side knows."""
    advance, wait, known = SIDES[side]()
    times, first = [], 0.0
    for _ in range(WARM + STEPS.value):
        start = time.perf_counter()
        advance()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
        first = first or time.perf_counter() - START
    peers.answer({"milliseconds": times[WARM:], "first": first, **known})


def main(argv: list[str]) -> None:
    if peers.SIDE.value:
        run_side(peers.SIDE.value)
        return
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # PyTorch's Python may lack us
    script = str(Path(argv[0]).resolve())
    if LENGTHS.value:
        compare_steps(script)
    if BATCHES.value:
        compare_predictions(script)


def compare_steps(script: str) -> None:
    """Prints the table of pretraining."""
    pythons = {"ours": sys.executable} | ({"torch": peers.TORCH.value} if peers.TORCH.value else {})
    print("| device | size | rows | | tokens/s | step | utilisation | first step |\n|---|---|---|---|---|---|---|---|")
    for size in SIZES.value:
        for length in LENGTHS.value:
            if time.perf_counter() - START > SECONDS.value:
                print(f"no time is left for {size} at {length}")
                continue
            arguments = [f"--sizes={size}", f"--lengths={length}", f"--tokens={TOKENS.value}", f"--steps={STEPS.value}"]
            found = {
                side: peers.ask(side, python, script, *arguments, f"--attention={ATTENTION.value}")
                for side, python in pythons.items()
            }
            mine, count = found["ours"], math.prod(rows_of(size, int(length)))
            for side, each in found.items():
                step = float(np.median(each["milliseconds"])) / 1e3
                own_step = float(np.median(mine["milliseconds"])) / 1e3
                ratio = "" if side == "ours" else f" ({step / own_step:.2f}x)"
                share = f"{mine['flops'] / step / mine['peak']:.1%}" if mine["peak"] else ""
                print(
                    f"| {each['device']} | {size} | {count // int(length)} x {length} | {side} "
                    f"| {count / step:,.0f}{ratio} | {1e3 * step:.1f} ms | {share} | {each['first']:.0f} s |",
                    flush=True,
                )


def compare_predictions(script: str) -> None:
    """Prints the table of prediction."""
    size, length = SIZES.value[0], PREDICT_LENGTH.value
    pythons = {"ours int8": sys.executable, "ours bfloat16": sys.executable}
    pythons |= {"torch bfloat16": peers.TORCH.value} if peers.TORCH.value else {}
    print("\n| device | size | rows | | texts/s | call | first call |\n|---|---|---|---|---|---|---|")
    for rows in BATCHES.value:
        if time.perf_counter() - START > SECONDS.value:
            print(f"no time is left for batches of {rows}")
            continue
        arguments = [f"--sizes={size}", f"--batches={rows}", f"--predict_length={length}", f"--steps={STEPS.value}"]
        found = {side: peers.ask(side, python, script, *arguments, f"--attention={ATTENTION.value}")
                 for side, python in pythons.items()}  # fmt: skip
        own = float(np.median(found["ours int8"]["milliseconds"]))
        for side, each in found.items():
            call = float(np.median(each["milliseconds"]))
            ratio = "" if side == "ours int8" else f" ({call / own:.2f}x)"
            print(f"| {each['device']} | {size} | {rows} x {length} | {side} | {1e3 * int(rows) / call:,.0f}{ratio} "
                  f"| {call:.2f} ms | {each['first']:.0f} s |", flush=True)  # fmt: skip


if __name__ == "__main__":
    app.run(main)
