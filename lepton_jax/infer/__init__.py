"""Inference: a folder in, a callable over texts out."""

from lepton_jax.infer.loading import from_bundle, load
from lepton_jax.infer.predictor import Predictor
from lepton_jax.infer.profiles import Profile, drift, measure

__all__ = ["Predictor", "Profile", "drift", "from_bundle", "load", "measure"]
