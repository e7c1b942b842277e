"""The steps that a trace names, and that a run which ends before its trace leaves a readable one."""

from pathlib import Path

import jax
import jax.numpy as jnp

from lepton_jax.train.tracing import Trace


def traced(folder: Path) -> list[int]:
    """Returns the numbers of the steps in the only trace of a folder."""
    (file,) = folder.rglob("*.xplane.pb")
    events = (
        event
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
    )
    return sorted(int(dict(event.stats)["step_num"]) for event in events if event.name == "train")


def run(folder: Path, steps: int, start: int, until: int) -> list[str]:
    double, x, lines = jax.jit(lambda x: 2 * x), jnp.ones(4), []
    with Trace(folder, steps, start) as trace:
        for number in range(start + 1, until + 1):
            with trace.step(number):
                x = double(x)
            if line := trace.after(number, x):
                lines.append(line)
    return lines


def test_the_steps_after_the_first_two_are_traced(tmp_path: Path) -> None:
    (line,) = run(tmp_path / "profile", steps=2, start=10, until=16)
    assert line.startswith(f"profile: steps 13 to 14 are in {tmp_path}/profile")
    assert traced(tmp_path / "profile") == [13, 14]


def test_a_run_that_ends_early_ends_its_trace(tmp_path: Path) -> None:
    assert run(tmp_path / "profile", steps=5, start=0, until=4) == []
    assert traced(tmp_path / "profile") == [3, 4]
    (line,) = run(tmp_path / "again", steps=1, start=0, until=3)  # the profiler is free for another one
    assert line


def test_without_steps_nothing_is_written(tmp_path: Path) -> None:
    assert run(tmp_path / "profile", steps=0, start=0, until=5) == [] and not (tmp_path / "profile").exists()
