"""What is known of an attention before it runs, from which its backend is chosen."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

# full: no padding, one document a row; padded: one document a row, padding to its right; packed: anything.
Rows = Literal["full", "padded", "packed"]


class Inputs(NamedTuple):
    """What attention is computed from, see `models.attention.attention`."""

    q_BxTxHxK: jax.Array
    k_BxTxHxK: jax.Array
    v_BxTxHxK: jax.Array
    segments_BxT: jax.Array


@dataclasses.dataclass(frozen=True)
class Case:
    """One attention: device, shapes, dtype, and who sees whom."""

    platform: str  # "cpu", "gpu" or "tpu"
    length: int  # positions of a row
    head_size: int
    dtype: str  # of queries, keys and values
    rows: Rows = "packed"
    causal: bool = False
    window: int | None = None  # positions to each side; None: all
    bias: bool = False  # whether something is added to the logits
    split: bool = False  # whether the positions of a row are spread over devices
    capability: float = 0.0  # of an NVIDIA GPU, such as 9.0 of Hopper; 0: not one

    @property
    def half(self) -> bool:
        """Whether it computes in 16 bits."""
        return self.dtype in ("bfloat16", "float16")

    def beyond(self, multiple: int = 1) -> str | None:
        """Returns why it is beyond a program that has neither bias nor split rows, None if it is not.

        Args:
          multiple: of positions, what a row must have.
        """
        if self.bias:
            return "it takes no relative positions (model.relative)"
        if self.split:
            return "it needs all positions of a row on one device (mesh.shape without sequence)"
        if self.length % multiple:
            return f"its rows have a multiple of {multiple} positions, not {self.length} (data.max_length)"
        return None


def device_of(mesh: Mesh | None) -> dict[str, Any]:
    """Returns the fields of a `Case` that the devices decide; the devices of a mesh may be elsewhere, see `topologies`.

    Args:
      mesh: None: the first device of this process.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    split = mesh is not None and mesh.shape["sequence"] > 1
    capability = 0.0
    if device.platform == "gpu" and "cuda" in device.client.platform_version:
        capability = float(device.compute_capability)
    return {"platform": device.platform, "split": split, "capability": capability}
