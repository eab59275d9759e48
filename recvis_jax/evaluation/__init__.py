"""Metrics, and one file per protocol that measures a model with them."""
