"""What happens to a batch whose loss or gradient is not finite: its update is left out, and counted.

After `train.max_skipped` such batches in a row the run goes back to its newest checkpoint while the data go on, past
the batches that led there; when `train.max_rollbacks` of those did not help, it stops and leaves the last batch to look
at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lepton_jax import processes
from lepton_jax.config import TrainConfig
from lepton_jax.core.errors import UserError


class Guard:
    """Watches `metrics["skipped"]`, a step late, so that looking at it never makes the devices wait."""

    def __init__(self, config: TrainConfig, workdir: Path):
        """Begins with no rollback made.

        Args:
          config: the limits.
          workdir: gets `bad_batch_PROCESS.npz` when the run stops.
        """
        self._config = config
        self._workdir = workdir
        self._rollbacks = 0
        self._total = 0  # skipped updates, as far as they have been looked at
        self._in_a_row = 0
        self._under_way: tuple[int, jax.Array, Mapping[str, np.ndarray]] | None = None

    def start(self, skipped: jax.Array) -> None:
        """Begins anew from a state that counts `skipped` updates."""
        self._total, self._in_a_row, self._under_way = int(skipped), 0, None

    def goes_back(self, step: int, skipped: jax.Array, batch: Mapping[str, np.ndarray]) -> bool:
        """Looks at the step before this one; returns whether the run must go back to a checkpoint.

        Args:
          step: the number of the step that was just dispatched.
          skipped: its metric, int32 [], which need not be there yet.
          batch: what it was given.

        Raises:
          UserError: the run went back `train.max_rollbacks` times before; the batch is written.
        """
        before, self._under_way = self._under_way, (step, skipped, batch)
        if before is None:
            return False
        number, total, bad = before[0], int(before[1]), before[2]
        self._in_a_row = self._in_a_row + 1 if total > self._total else 0
        self._total = total
        if self._in_a_row < self._config.max_skipped:
            return False
        if self._rollbacks == self._config.max_rollbacks:
            path = self._workdir / f"bad_batch_{jax.process_index()}.npz"
            arrays: Any = {"step": number, **bad}
            with processes.together():
                try:
                    np.savez(path, **arrays)
                    kept = f"the last batch is in {path.name}"
                except OSError as error:
                    kept = f"the last batch could not be kept ({error.strerror})"
                raise UserError(
                    f"{self._workdir}: the loss or gradient of {self._in_a_row} steps in a row up to step {number} was "
                    f"not finite, after going back {self._rollbacks} times; {kept}; lower "
                    f"train.learning_rate, or look at the data"
                )
        self._rollbacks += 1
        return True
