"""A run's folder: who owns it, and how its JSON files are written and read.

    WORKDIR/config.json      the resolved config, versions, git revision, command, and where it ran
    WORKDIR/metrics.jsonl    one line a logged step
    WORKDIR/checkpoints/     one folder a saved step
    WORKDIR/summary.json     what the run achieved
    WORKDIR/tensorboard/     the metrics for TensorBoard
    WORKDIR/wandb.json       the id of the run at Weights & Biases, where `train.wandb` names a project

A folder belongs to the one config in its config.json: `claim` resumes that run and refuses any other. The sections
`mesh` do not count, for the same run may go on elsewhere, nor does what only looks on, `train.profile` and
`train.wandb`. Of several processes the first one decides and writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import lepton_jax
from lepton_jax import processes
from lepton_jax.config import runs, to_dict
from lepton_jax.core.errors import UserError
from lepton_jax.disk import failed_write

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_ELSEWHERE = {"mesh", "profile", "wandb"}  # sections and fields in which two configs of one run may differ
_ABSENT = "nothing"  # how a message names a field that one of two configs does not have


def claim(workdir: Path, config: Any) -> None:
    """Makes `workdir` the folder of a run with this config: a new or empty folder, or the same run resumed.

    A new folder gets config.json: the config, the versions of the libraries, the git revision of the package's
    source tree, the command, and as the first of its `starts` the devices, the number of processes and the mesh. A
    folder of the same run stays as it is, but for one more of `starts` where the last one was elsewhere.

    Args:
      workdir: the run's folder; parents are created.
      config: a resolved config, a frozen dataclass of `lepton_jax.config`.

    Raises:
      UserError: the folder holds a run with another config, files that are not a run's (hidden files do not
        count), or a damaged config.json; or it cannot be created or written, or another process does not see it.
        Nothing is changed then.
    """
    processes.on_first(lambda: _claim(workdir, config))
    with processes.together():
        if not (workdir / "config.json").exists():
            raise UserError(f"{workdir}: process {jax.process_index()} does not see what process 0 wrote there; "
                            f"choose a workdir on a file system that all processes share")  # fmt: skip


def _claim(workdir: Path, config: Any) -> None:
    wanted = to_dict(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        strangers = sorted(entry.name for entry in workdir.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{workdir}: cannot be used as a work directory ({error.strerror})") from None
    path = workdir / "config.json"
    if path.exists():
        recorded = read_json(path)
        if not isinstance(recorded, dict) or not isinstance(recorded.get("config"), dict):
            raise UserError(f"{path}: holds no config of a run; choose another workdir")
        _require_same(workdir, recorded["config"], config)
        starts, here = recorded.get("starts", []), _place(config)
        if not starts or starts[-1] != here:
            write_json(path, recorded | {"starts": [*starts, here]})
    elif strangers:
        raise UserError(
            f"{workdir}: holds {strangers[0]!r} but no config.json, so it is no run's; choose another workdir"
        )
    else:
        write_json(path, {"config": wanted} | _environment() | {"starts": [_place(config)]})


def release(workdir: Path) -> None:
    """Undoes `claim` where the run has written nothing else, so that a corrected command may have the folder."""
    processes.on_first(lambda: _release(workdir))


def _release(workdir: Path) -> None:
    others = [entry for entry in workdir.iterdir() if entry.name != "config.json"]
    if all(entry.is_dir() and not any(entry.iterdir()) for entry in others):
        with contextlib.suppress(OSError):  # a folder that can no longer be written: the error that led here says it
            for empty in others:  # what the runs of a chain were to have
                empty.rmdir()
            (workdir / "config.json").unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as JSON, whole or not at all: a crash leaves the old file or the new one.

    Scalars of numpy and jax become numbers, their arrays lists. Of several processes only the first one writes.

    Raises:
      UserError: the file cannot be written.
      TypeError: `value` holds something that JSON cannot.
    """
    if jax.process_index() != 0:
        return
    text = json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"
    replace_file(path, text)


def replace_file(path: Path, contents: str | bytes) -> None:
    """Replaces the contents of `path` by a text (UTF-8) or bytes in one step, on disk when this returns.

    Raises:
      UserError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(contents.encode() if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only disk refuses even to delete what is not there
            part.unlink(missing_ok=True)
        raise failed_write(path, error) from None


def read_json(path: Path) -> Any:
    """Returns the value in a JSON file.

    Raises:
      UserError: there is no such file, it cannot be read, or it is not JSON (a truncated one).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON at line {error.lineno} ({error.msg}); the file is damaged") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the objects in a file of one JSON object a line; none where there is no such file.

    A last line without its end was cut off when a run was killed, and is left out.

    Raises:
      UserError: the file cannot be read, or another line is no JSON object.
    """
    if not path.exists():
        return []
    objects = []
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith("\n"):
                    value = json.loads(line)
                    if not isinstance(value, dict):
                        raise UserError(f"{path}: line {number} is no JSON object; the file is damaged")
                    objects.append(value)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text after line {len(objects)}; the file is damaged") from None
    except json.JSONDecodeError:
        raise UserError(f"{path}: line {len(objects) + 1} is not valid JSON; the file is damaged") from None
    return objects


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one, with dotted paths for keys: {"a": {"b": 1}} gives {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def identity(config: Any) -> str:
    """Returns 10 hexadecimal digits that two resolved configs share if `claim` takes them for the same run.

    Fields with their default values do not enter, so that a config keeps its digits when the package gets a new field.
    """
    own = _own_fields(to_dict(config), type(config)())
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:10]


def _own_fields(tree: dict[str, Any], default: Any) -> dict[str, Any]:
    """Returns the fields of a config, by their paths, that make it a run of its own: those that are not the default,
    but for where it computes and what is watched of it meanwhile."""
    usual = flatten(to_dict(default))
    del usual["stage"]  # of two stages nothing is the same
    fields = {path: value for path, value in flatten(tree).items() if not _ELSEWHERE & set(path.split("."))}
    return {path: value for path, value in fields.items() if path not in usual or value != usual[path]}


def _require_same(workdir: Path, recorded: dict[str, Any], config: Any, shown: int = 3) -> None:
    """Raises where two configs differ, naming the first few fields that do; what was not recorded has its default."""
    default = type(config)()
    there, here = _own_fields(recorded, default), _own_fields(to_dict(config), default)
    paths = [path for path in {**here, **there} if there.get(path, _ABSENT) != here.get(path, _ABSENT)]
    if paths:
        usual = flatten(to_dict(default))
        there, here = usual | there, usual | here
        fields = "; ".join(
            f"{path}={there.get(path, _ABSENT)!r} there, {here.get(path, _ABSENT)!r} here" for path in paths[:shown]
        )
        more = f"; and {len(paths) - shown} more" if len(paths) > shown else ""
        raise UserError(f"{workdir}: holds a run with another config ({fields}{more}); choose another workdir")


def _environment() -> dict[str, Any]:
    """Returns what a run depends on besides its config."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "versions": {"python": platform.python_version(), **versions, "lepton_jax": lepton_jax.__version__},
        "git_revision": git_revision(),
        "command": sys.argv,
    }


def _place(config: Any) -> dict[str, Any]:
    """Returns where a run computes."""
    devices = jax.devices()
    return {
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "mesh": {where: run.mesh.shape for where, run in runs(config)},
    }


def git_revision(package: Path = Path(lepton_jax.__file__).parent) -> str | None:
    """Returns the commit of the source tree that holds `package`, with "-dirty" where tracked files were changed.

    None where there is no git, or where the package is not a tracked part of a git tree: an installed copy in a
    virtual environment inside somebody's repository has no revision.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(package), *arguments], capture_output=True, text=True, check=False)
        except OSError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _plain(value: Any) -> Any:
    """Returns a scalar or array of numpy or jax as JSON's own types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not fit into JSON")
