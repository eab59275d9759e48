"""The filters of a first layer as pictures: what each unit detects, for layers whose inputs are pixels."""

import numpy as np
from jaxtyping import Float

_LARGEST = 64  # largest side of a filter that is shown, pixels


def pictures(
    kernel: Float[np.ndarray, "..."], image_shape: tuple[int, int, int], most: int = 64
) -> Float[np.ndarray, "n h w c"] | None:
    """Returns filters as images in [0, 1], with 0.5 for a weight of zero; each is scaled by its largest weight.

    Args:
      kernel: of the first layer: a convolution (h w c n), or a product with all pixels (h*w*c n).
      image_shape: (h, w, c) of the images.
      most: maximum number of filters; those with the largest weights (by the sum of squares) are kept, in their order.

    Returns:
      None if weights cannot be a picture: 1x1 convolutions, channels that differ from the images', too large images.

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
