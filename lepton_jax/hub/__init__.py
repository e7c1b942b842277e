"""The door to trained models: a folder or a name in, a `Bundle` out, and back."""

from lepton_jax.hub.bundle import Bundle, Card, describe, rescaled, write
from lepton_jax.hub.fetch import fetch
from lepton_jax.hub.load import load
from lepton_jax.hub.save import save

__all__ = ["Bundle", "Card", "describe", "fetch", "load", "rescaled", "save", "write"]
