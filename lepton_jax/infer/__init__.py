"""Inference: a folder in, a callable over texts out."""

from lepton_jax.infer.predictor import Predictor, load

__all__ = ["Predictor", "load"]
