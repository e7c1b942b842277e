"""The door to trained models: a folder in, a `Bundle` out."""

from lepton_jax.hub.bundle import Bundle, Card, describe, load, write

__all__ = ["Bundle", "Card", "describe", "load", "write"]
