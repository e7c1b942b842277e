"""What a sweep will cost, before it runs: FLOPs by shapes, and time by what is known of the speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table
import rich.text

from lepton_jax.config import runs
from lepton_jax.sweeps.experiment import Member
from lepton_jax.sweeps.progress import Entry

_UTILISATION = 0.5  # assumed of a training, where no run of the sweep is there to tell


def flops(member: Member) -> float:
    """Returns the FLOPs of the training steps of a run, all rows taken as full: an upper bound where texts are shorter.

    Evaluation is not counted, nor what a chain trains besides its two parts.
    """
    from lepton_jax import plan
    from lepton_jax.train.forecast import row_flops

    total = 0.0
    for _, config in runs(member.config):
        assumed, task, model = plan.assume(config)
        rows = config.train.steps * config.train.batch_size * config.train.seeds
        total += rows * row_flops(task, model, assumed.data.max_length)
    return total


def show(title: str, entries: Sequence[Entry], missing: Sequence[Entry]) -> None:
    """Prints every run with its state, FLOPs and expected time, and the sum of what is missing.

    The time goes by the runs of the sweep that are complete: their seconds a FLOP, evaluation and compilation with
    them. Where none is, it is the FLOPs over half of what the devices could do, and says so.
    """
    costs = {entry.member.hash: flops(entry.member) for entry in entries}
    known = [entry.seconds / costs[entry.member.hash] for entry in entries if entry.state == "done" and entry.seconds]
    if known:
        rate, source = statistics.median(known), f"by {len(known)} runs that are complete"
    else:
        import jax

        from lepton_jax.train.utilisation import peak_flops

        peak = peak_flops(jax.devices())
        rate = None if peak is None else 1 / (_UTILISATION * peak)
        source = "by half of the peak" if peak else "of unknown time: the peak of this device is not known"
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left")
    for column, justify in (
        ("run", "left"),
        ("variant", "left"),
        ("state", "left"),
        ("FLOPs", "right"),
        ("time", "right"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]

    def clock(cost: float) -> str:
        return "" if rate is None else f"{cost * rate / 60:,.1f} min"

    for entry in entries:
        cost = costs[entry.member.hash]
        cells = (entry.member.hash, entry.member.label, entry.state, f"{cost:.2e}", clock(cost))
        table.add_row(*map(rich.text.Text, cells))
    left = sum(costs[entry.member.hash] for entry in missing)
    rich.console.Console().print(table)
    print(f"{len(missing)} of {len(entries)} runs to do: {left:.2e} FLOPs, {clock(left)} ({source})")
