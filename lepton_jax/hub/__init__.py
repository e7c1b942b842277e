"""The door to trained models: a folder or a name in, a `Bundle` out, and back."""

from lepton_jax.hub.bundle import Bundle, Card, describe, write
from lepton_jax.hub.fetch import fetch
from lepton_jax.hub.hugging_face import save
from lepton_jax.hub.load import load

__all__ = ["Bundle", "Card", "describe", "fetch", "load", "save", "write"]
