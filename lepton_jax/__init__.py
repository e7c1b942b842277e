"""Transformers from raw text to a served int8 model, in JAX and Flax (Linen)."""

__version__ = "0.1.0"
