"""Compression, one method a file: pure functions from a parameter tree to a smaller one for the same modules."""

from lepton_jax.compress.int8 import quantize_int8

__all__ = ["quantize_int8"]
