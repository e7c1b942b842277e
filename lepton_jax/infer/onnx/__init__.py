"""ONNX: a model as one file that ONNX Runtime, and nothing of ours, runs. The library `onnx` is an extra."""

from lepton_jax.infer.onnx.export import export, write

__all__ = ["export", "write"]
