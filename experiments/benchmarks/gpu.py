"""Masked-LM pretraining on one GPU: tokens a second and the share of its peak, beside PyTorch with SDPA and compile.

    python experiments/benchmarks/gpu.py [--sizes=base,large] [--lengths=512,1024] [--tokens=32768] [--steps=20] \\
        [--torch_python=PYTHON_WITH_TRANSFORMERS_5_AND_TORCH]

BERT in bfloat16 with float32 parameters, AdamW, 15% of the positions predicted, rows packed full. Ours keeps four
documents a row apart, by the backend that the door to attention picks or `--attention` names. PyTorch has the easier
task of one document a row, without any mask, in `torch.compile`d bfloat16 autocast; its head runs on the same positions
alone, as ours does. Each side and shape has a process of its own. Cost: six to nine minutes on an H100, most of it
compilation; `--seconds` stops before a shape that would start later.

How to read it: `tokens/s` from the median step; in parentheses how many times as many ours has. `utilisation` is
FLOPs by the model's shapes (`models/flops.py`) over the peak of the data sheet; both sides count the same FLOPs.
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
    tokens = TOKENS.value // 2 if size == "large" else TOKENS.value
    return size, max(tokens // length, 1), length


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


def run_side(side: str) -> None:
    """Answers with the milliseconds of each step, the time to the first one, and what the side knows."""
    _, rows, length = shape()
    advance, wait, known = {"ours": ours, "torch": pytorch}[side]()
    times, first = [], 0.0
    for _ in range(WARM + STEPS.value):
        start = time.perf_counter()
        advance()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
        first = first or time.perf_counter() - START
    peers.answer({"milliseconds": times[WARM:], "first": first, "tokens": rows * length, **known})


def main(argv: list[str]) -> None:
    if peers.SIDE.value:
        run_side(peers.SIDE.value)
        return
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parents[2]))  # PyTorch's Python may lack us
    pythons = {"ours": sys.executable} | ({"torch": peers.TORCH.value} if peers.TORCH.value else {})
    script = str(Path(argv[0]).resolve())
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
            mine = found["ours"]
            for side, each in found.items():
                step = float(np.median(each["milliseconds"])) / 1e3
                own_step = float(np.median(mine["milliseconds"])) / 1e3
                ratio = "" if side == "ours" else f" ({step / own_step:.2f}x)"
                share = f"{mine['flops'] / step / mine['peak']:.1%}" if mine["peak"] else ""
                print(
                    f"| {each['device']} | {size} | {each['tokens'] // int(length)} x {length} | {side} "
                    f"| {each['tokens'] / step:,.0f}{ratio} | {1e3 * step:.1f} ms | {share} | {each['first']:.0f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
