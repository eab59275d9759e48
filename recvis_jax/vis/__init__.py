"""Figures: pure functions that return arrays, and `plot`, the one file that draws."""
