"""Recognition from 1999 to 2012: local descriptors, a vocabulary, an encoding. Pure functions on arrays.

A vocabulary is learnt from descriptors of many images (`kmeans`, `gmm`, after `pca`); with it, `encoding.make` turns an
image's descriptors into one vector. `DESCRIPTORS` (of images (b h w c) in [0, 1]) and `ENCODERS` list what there is.
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
