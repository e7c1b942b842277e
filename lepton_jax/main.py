"""The command line: the only file with flags.

python -m lepton_jax.main --config=configs/NAME.py[:ARG] --workdir=DIR [--config.section.field=value ...]
"""

from __future__ import annotations

if __name__ == "__main__":
    from lepton_jax import cpus

    cpus.prepare()  # first of all, for it starts the process anew

import contextlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lepton_jax.config import AblateConfig, MeshConfig, SearchConfig, resolve, runs
from lepton_jax.core.errors import UserError
from lepton_jax.disk import UNWRITABLE, failed_write
from lepton_jax.overrides import explain_override

CONFIG = config_flags.DEFINE_config_file("config", None, "A recipe, such as configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; it is created.")


def main() -> None:
    """Runs one stage; a person's mistake is one line on stderr and exit code 2."""
    try:
        app.run(_run, flags_parser=_parse)
    except SystemExit as error:
        if error.code != 2:
            raise
        # Threads of a save that failed may be at work still; Python would abort (code 134) if it took itself apart now.
        # And of several processes, an orderly end would wait for the others, and they for this one.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(2)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; whatever is wrong with them ends as one line."""
    try:
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise UserError(f"{rest[1]!r} is not a flag; a field is set by --config.section.field=value")
        if CONFIG.value is None or WORKDIR.value is None:
            raise UserError("--config=configs/NAME.py and --workdir=DIR are both needed")
        if not isinstance(CONFIG.value, ConfigDict):
            _ = CONFIG.value.stage  # the file could not be loaded; this raises why
    except UserError as error:
        _fail(error)
    except (flags.IllegalFlagValueError, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(UserError(_explain(argv, error)))
    except (flags.Error, OSError, ImportError, SyntaxError) as error:
        _fail(error)
    return rest


def _explain(argv: list[str], error: Exception) -> str:
    """Returns what is wrong with the override that made parsing fail, which the error may or may not name."""
    text = str(error).replace("\\", "")
    for path, value in re.findall(r"--config\.([\w.]+)[= ](.*?)(?:\x00|$)", "\x00".join(argv)):
        if f"--config.{path}=" in text or any(f"'{name}'" in text for name in path.split(".")):
            return explain_override(path, value)
    return text.rpartition("UserError: ")[2]  # of a recipe that refused its argument, without the traceback to there


def _run(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # the libraries below narrate every file they write
    try:
        config = resolve(CONFIG.value)
        if isinstance(config, (AblateConfig, SearchConfig)):
            return _conduct(config)
        from lepton_jax import processes  # after the config is known to be right: this loads JAX

        trainings = runs(config)
        processes.start(trainings[0][1].mesh if trainings else MeshConfig())
    except UserError as error:
        _fail(error)
    import jax

    try:
        _work(config)
    except Exception as error:
        if isinstance(error, UserError):
            _fail(error)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:  # of the many places that write into a cache
            _fail(failed_write(error.filename or "a file", error))
        # An error of XLA's, such as "UNKNOWN: Gloo all-reduce failed", is mostly the end of another process: an orderly
        # end here, which waits for it, lets JAX find out and name it.
        if jax.process_count() > 1 and not re.match(r"[A-Z_]+: ", str(error)):
            _leave(error)
        raise


def _work(config: Any) -> None:
    """Runs a stage and shows its summary; of several processes only the first one speaks."""
    import jax
    from rich.console import Console

    from lepton_jax import report, stages
    from lepton_jax.train.stopping import Stopped, leave_on_sigterm

    speaks = jax.process_index() == 0
    if not speaks:
        logging.set_verbosity(logging.ERROR)
    try:
        with leave_on_sigterm(f"{WORKDIR.value}: stopped by SIGTERM; the same command goes on"):
            summary = stages.run(config, str(WORKDIR.value))
    except Stopped as stopped:
        if speaks:
            print(stopped)
        return
    if not speaks:
        return
    console = Console()
    console.print(report.summary_table(summary))
    for table in report.comparison_tables(summary):
        console.print(table)
    if config.stage == "predict":
        if config.infer.output:
            print(f"predictions in {config.infer.output}")
        return
    if getattr(config, "dry_run", False):
        return
    examples = report.examples_table(Path(str(WORKDIR.value)))
    if examples.row_count:
        console.print(examples)
    print(f"more in {WORKDIR.value}/report.html")


def _conduct(config: AblateConfig | SearchConfig) -> None:
    """Does the runs of an experiment in processes of their own: this one starts no device, for they are theirs."""
    from rich.console import Console

    from lepton_jax import report, sweeps

    if isinstance(config, SearchConfig):
        summary = sweeps.search(config, str(WORKDIR.value))
    else:
        summary = sweeps.ablate(config, str(WORKDIR.value))
        if config.dry_run or config.where == "commands":
            return
    page = summary.pop("report")
    Console().print(report.summary_table(summary))
    print(f"more in {page}")
    if summary.get("failed"):
        raise SystemExit(1)


def _leave(error: Exception) -> NoReturn:
    """Ends one process of several at once: an orderly end would wait for the others, and they for this one."""
    traceback.print_exception(error)
    with contextlib.suppress(SystemExit):
        _fail(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _fail(error: Exception) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr on a disk that is full; the exit code is left
        print(f"lepton_jax: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
