"""Compression, one method a file: pure functions from a parameter tree to a smaller one for the same modules."""

from lepton_jax.compress.calibration import Inputs, calibrate, see_inputs, uncalibrated
from lepton_jax.compress.fake_int8 import fake_int8
from lepton_jax.compress.int8 import quantize_int8

__all__ = ["Inputs", "calibrate", "fake_int8", "quantize_int8", "see_inputs", "uncalibrated"]
