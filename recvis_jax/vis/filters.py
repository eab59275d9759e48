"""The filters of a first layer as pictures: what each unit is looking for, where its inputs are pixels."""

import numpy as np
from jaxtyping import Float

_LARGEST = 64  # pixels of a filter's side that are shown


def pictures(
    kernel: Float[np.ndarray, "..."], image_shape: tuple[int, int, int], most: int = 64
) -> Float[np.ndarray, "n h w c"] | None:
    """Returns filters as images in [0, 1], in which 0.5 is a weight of zero; each is scaled by its largest weight.

    Args:
      kernel: of the first layer: of a convolution (h w c n), or of a product with all pixels (h*w*c n).
      image_shape: (h, w, c) of the images.
      most: filters that are returned; of more, those with the largest weights (by the sum of squares), in their order.

    Returns:
      None where weights are no picture: of 1x1 convolutions, of other channels than images have, of too large images.

    Example:
      >>> kernel = np.zeros((3, 3, 1, 2), np.float32)
      >>> kernel[1, 1, 0, 1] = -2
      >>> pictures(kernel, (28, 28, 1))[:, 1, 1, 0].tolist()
      [0.5, 0.0]
    """
    h, w, c = image_shape
    if kernel.ndim == 2 and len(kernel) == h * w * c and max(h, w) <= _LARGEST:
        kernel = kernel.reshape(h, w, c, -1)
    if kernel.ndim != 4 or kernel.shape[2] != c or c not in (1, 3) or not 1 < max(kernel.shape[:2]) <= _LARGEST:
        return None
    found = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
    if len(found) > most:
        found = found[np.sort(np.argsort(-(found**2).sum((1, 2, 3)), kind="stable")[:most])]
    largest = np.abs(found).max((1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * found / np.where(largest > 0, largest, 1)
