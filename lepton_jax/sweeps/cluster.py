"""A sweep elsewhere: as a Slurm array through submitit, or as plain commands for machines such as TPU VMs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lepton_jax.config import SlurmConfig
from lepton_jax.core.errors import UserError
from lepton_jax.sweeps.crew import Outcome, run_alone
from lepton_jax.sweeps.experiment import Experiment, Member
from lepton_jax.sweeps.progress import Entry
from lepton_jax.workdir import read_json, write_json

_LOOK_SECONDS = {"slurm": 10.0, "local": 0.5}


class Job:
    """A run as submitit pickles it; one that is preempted, or whose time is over, is queued again and goes on."""

    def __init__(self, config: Any, folder: Path):
        self._config, self._folder = config, folder

    def __call__(self) -> Outcome:
        return run_alone(self._config, self._folder)

    def checkpoint(self) -> Any:
        """Returns what submitit queues in place of this job."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def commands(experiment: Experiment, members: Sequence[Member], workdir: Path, template: str) -> list[str]:
    """Returns a command line for each run.

    Args:
      experiment, members: the runs.
      workdir: of the sweep, on a file system that the machines share, or a bucket.
      template: a line with {command}, or {quoted} for the same as one word of a shell, {index} from 0, and {hash}.

    Raises:
      UserError: the template has another field, or none that holds the command.
    """
    if "{command}" not in template and "{quoted}" not in template:
        raise UserError(f"config.template={template!r}: must hold {{command}} or {{quoted}}")
    lines = []
    for index, member in enumerate(members):
        command = experiment.command(member, workdir)
        try:
            lines.append(template.format(command=command, quoted=shlex.quote(command), index=index, hash=member.hash))
        except (KeyError, IndexError, ValueError) as error:
            known = "{command}, {quoted}, {index} and {hash}"
            raise UserError(f"config.template={template!r}: cannot be filled ({error}); it may hold {known}") from None
    return lines


def follow(missing: Sequence[Entry], workdir: Path, slurm: SlurmConfig, show: Callable[[], None]) -> None:
    """Submits runs as one array, but for those that an earlier command has in the queue, and waits for all of them.

    Ctrl-C ends the waiting, not the jobs; the same command waits for them again.

    Args:
      missing: runs, whose states are kept up to date.
      workdir: of the sweep, on a file system that the nodes share.
      slurm: how.
      show: is called now and then.
    """
    jobs = _submitted(missing, workdir, slurm)
    try:
        while any(entry.state in ("waiting", "running") for entry in missing):
            for entry in missing:
                if entry.state in ("waiting", "running"):
                    _look(entry, jobs[entry.member.hash])
            show()
            time.sleep(_LOOK_SECONDS[slurm.cluster])
    except KeyboardInterrupt:
        print(f"the jobs go on; the same command waits for them again, and {workdir}/jobs.json has their numbers")
    for entry in missing:
        entry.state = "stopped" if entry.state in ("waiting", "running") else entry.state


def _submitted(missing: Sequence[Entry], workdir: Path, slurm: SlurmConfig) -> dict[str, Any]:
    """Returns hash -> job."""
    try:
        import submitit
    except ImportError:
        raise UserError("config.where='slurm': needs submitit; pip install 'lepton_jax[experiments]'") from None
    logs = workdir / "slurm"
    record: dict[str, str] = read_json(workdir / "jobs.json") if (workdir / "jobs.json").exists() else {}
    kind = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}[slurm.cluster]
    jobs: dict[str, Any] = {
        entry.member.hash: kind(logs, record[entry.member.hash]) for entry in missing if entry.member.hash in record
    }
    jobs = {name: job for name, job in jobs.items() if not job.done()}
    new = [entry for entry in missing if entry.member.hash not in jobs]
    extra = _extra(slurm)
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=slurm.cluster)
        executor.update_parameters(
            name=workdir.name, timeout_min=slurm.minutes, cpus_per_task=slurm.cpus, gpus_per_node=slurm.gpus,
            mem_gb=slurm.memory_gb, nodes=slurm.nodes, tasks_per_node=1,
            slurm_array_parallelism=slurm.at_once, slurm_additional_parameters=extra,
        )  # fmt: skip
        with executor.batch():
            submitted = [executor.submit(Job(entry.member.config, entry.folder)) for entry in new]
    except (RuntimeError, OSError) as error:  # no Slurm here, no such partition
        raise UserError(f"config.slurm: cannot be submitted ({' '.join(str(error).split())})") from error
    jobs |= {entry.member.hash: job for entry, job in zip(new, submitted, strict=True)}
    write_json(workdir / "jobs.json", record | {name: job.job_id for name, job in jobs.items()})
    return jobs


def _look(entry: Entry, job: Any) -> None:
    """Takes in how far a job is."""
    if not job.done():
        if job.state in ("RUNNING", "COMPLETING") and entry.state != "running":
            entry.state, entry.began = "running", time.monotonic()
        return
    try:
        outcome = job.result()
    except Exception as error:  # it was cancelled, or its node is gone
        outcome = Outcome("failed", f"{' '.join(str(error).split())[:200]}; see {job.paths.stderr}")
    entry.state, entry.reason = outcome.state, outcome.reason if outcome.state == "failed" else ""


def _extra(slurm: SlurmConfig) -> dict[str, str]:
    """Returns further settings of sbatch."""
    named = {"partition": slurm.partition, "account": slurm.account}
    for setting in slurm.extra:
        name, equals, value = setting.partition("=")
        if not name or not equals:
            raise UserError(f"config.slurm.extra={setting!r}: must be NAME=VALUE, such as qos=long")
        named[name] = value
    return {name: value for name, value in named.items() if value}
