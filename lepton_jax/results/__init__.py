"""What runs have achieved: found in their folders, compared over seeds, and set as tables and figures."""

from lepton_jax.results.runs import Run, find, frame

__all__ = ["Run", "find", "frame"]
