"""A run in its folder, from claim to summary: what is complete is not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lepton_jax import processes, report, workdir
from lepton_jax.core.errors import UserError
from lepton_jax.train import weights_and_biases

Summary = dict[str, Any]


def complete(folder: Path, config: Any, work: Callable[[], tuple[Summary, dict[str, Path]]]) -> Summary:
    """Returns what `folder/summary.json` holds, after the work that makes it unless it is there.

    Args:
      folder: of the run; it is claimed for the config.
      config: a resolved config.
      work: gives (summary, title -> folder of each training that the report shows).

    Raises:
      UserError: the folder is another run's, or what the work raises, in which case a folder without a file of the
        run is free again.
    """
    workdir.claim(folder, config)
    if processes.on_first((folder / "summary.json").exists):
        return processes.on_first(lambda: workdir.read_json(folder / "summary.json"))
    start = time.perf_counter()
    try:
        summary, sections = work()
    except UserError as error:  # mostly data that were not as the config said
        if error.everywhere or jax.process_count() == 1:
            workdir.release(folder)
        raise
    summary["wall_seconds"] = time.perf_counter() - start

    def finish() -> Summary:
        report.write_report(folder / "report.html", sections, summary)
        workdir.write_json(folder / "summary.json", summary)  # with it, the run is complete
        weights_and_biases.conclude(folder, config, summary)
        return summary

    return processes.on_first(finish)
