"""Where in the data a run is, as an item of a checkpoint: one small JSON file a part, whichever process wrote it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import orbax.checkpoint as ocp


class DataIterator(Protocol):
    """What a checkpoint needs of an iterator over the data, such as `data.batches.Streams`."""

    @property
    def kept(self) -> Collection[str]:
        """The names of the state that this process writes; another one writes the others."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns name -> what JSON can hold: the position of each part that this process runs."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position; raises UserError where it is another iterator's."""
        ...


class Positions(ocp.CheckpointHandler):
    """The item `data`: one small file a name. They are written before `save` returns: the position moves on."""

    def save(self, directory: Any, args: SavePositions) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for name, state in args.state.items():
            (Path(directory) / f"{name}.json").write_text(json.dumps(state), encoding="utf-8")

    def restore(self, directory: Any, args: RestorePositions) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(directory).glob("*.json")}


@ocp.args.register_with_handler(Positions, for_save=True)
@dataclasses.dataclass
class SavePositions(ocp.args.CheckpointArgs):
    state: dict[str, Any]


@ocp.args.register_with_handler(Positions, for_restore=True)
@dataclasses.dataclass
class RestorePositions(ocp.args.CheckpointArgs):
    pass
