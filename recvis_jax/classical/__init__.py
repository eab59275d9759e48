"""Recognition from 1999 to 2012: local descriptors, a vocabulary, an encoding. Pure functions on arrays.

Descriptors of many images teach a vocabulary (`kmeans`, `gmm`, after `pca`), with which `encoding.make` makes a vector
of an image's descriptors. `DESCRIPTORS` (of images (b h w c) in [0, 1]) and `ENCODERS` are the tables of contents.
"""

from collections.abc import Callable

from recvis_jax.classical import fisher, histograms, hog, patches, phow, textons, vlad
from recvis_jax.classical.encoding import Encoder
from recvis_jax.classical.local import Local

DESCRIPTORS: dict[str, Callable[..., Local]] = {
    "phow": phow.phow,
    "hog": hog.hog,
    "patches": patches.patches,
    "textons": textons.textons,
}

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "hard": histograms.hard,
    "soft": histograms.soft,
    "llc": histograms.llc,
    "vlad": vlad.vlad,
    "fisher": fisher.fisher,
}
