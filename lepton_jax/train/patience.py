"""Early stopping: a run ends after `evaluate.patience` evaluations in a row that were no better than the best before.

What was measured so far is read from metrics.jsonl, where each evaluation is on disk before its step is saved. A run
that resumes, wherever it was killed, therefore stops at the step at which it would have stopped without that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lepton_jax import processes
from lepton_jax.config import LOWER_IS_BETTER, Config
from lepton_jax.train.logging import read_metrics


class Patience:
    """Looks at each evaluation, by the metric `checkpoint.best`. Of several processes the first one decides for all."""

    def __init__(self, config: Config, workdir: Path, step: int):
        """Takes up what was measured in `workdir` up to a step, from which training goes on."""
        self._name, self._limit = config.checkpoint.metric, config.evaluate.patience
        self._workdir = workdir
        self.start(step)

    def start(self, step: int) -> None:
        """Begins anew from a step, of which everything recorded later is to be forgotten."""
        self._best, self._best_step, self._waited = math.inf, 0, 0
        for line in processes.on_first(lambda: read_metrics(self._workdir)):
            if (name := f"validation/{self._name}") in line and line["step"] <= step:
                self._take(line["step"], line[name])

    def look(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes in an evaluation; returns whether its step must be saved: it is the best so far, or the last one."""
        value = processes.on_first(lambda: float(metrics.get(self._name, math.nan)))
        return self._take(step, value) or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether training ends here."""
        return 0 < self._limit <= self._waited

    @property
    def reason(self) -> str:
        """Says why it does, for people."""
        since = f"since step {self._best_step}" if self._best_step else "at all"
        return f"no better {self._name} {since}, in {self._waited} evaluations: training ends here"

    def _take(self, step: int, value: float) -> bool:
        """Returns whether a value is better than all before; NaN never is."""
        score = value if self._name in LOWER_IS_BETTER else -value
        if score < self._best:
            self._best, self._best_step, self._waited = score, step, 0
            return True
        self._waited += 1
        return False
