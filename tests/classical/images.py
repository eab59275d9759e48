"""Made-up images that are neither flat nor white noise."""

import numpy as np
from scipy import ndimage


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Smooth noise (h w) or (h w c) in [0, 1]."""
    sigma = (1.5, 1.5, 0)[: len(shape)]
    x = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    return ((x - x.min()) / (x.max() - x.min())).astype(np.float32)
