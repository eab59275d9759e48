"""Metrics, and one file a protocol that measures a model with them."""
