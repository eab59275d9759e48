"""Visual recognition in JAX, from the bag of words to masked autoencoders, as pure functions."""

__version__ = "0.1.0"
