"""Recognition from 1999 to 2012: local descriptors, a vocabulary, an encoding. Pure functions on arrays.

Descriptors of many images teach a vocabulary (`kmeans`, `gmm`, after `pca`), with which `encoding.make` makes a vector
of an image's descriptors. `ENCODERS` is its table of contents.
"""

from collections.abc import Callable

from recvis_jax.classical import fisher, histograms, vlad
from recvis_jax.classical.encoding import Encoder

ENCODERS: dict[str, Callable[..., Encoder]] = {
    "hard": histograms.hard,
    "soft": histograms.soft,
    "llc": histograms.llc,
    "vlad": vlad.vlad,
    "fisher": fisher.fisher,
}
