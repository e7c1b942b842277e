from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def experiment(tmp_path: Path, recipe: Callable[..., str]) -> Callable[..., Path]:
    """Returns a function that writes an experiment over a tiny recipe, and gives its path."""

    def write(body: str, stage: str = "finetune", metrics: str = '("finetune.accuracy",)', **changes: object) -> Path:
        parent = recipe(stage, **changes)
        file = tmp_path / "trial.py"
        file.write_text(
            f'"""Does it matter?\n\nIt may.\n"""\nfrom lepton_jax.sweeps import *\n'
            f"PARENT = {parent!r}\nMETRICS = {metrics}\n{body}\n"
        )
        return file

    return write
