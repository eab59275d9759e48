"""VLFeat's encoders, of Debian's libvlfeat1, by ctypes."""

import ctypes
import ctypes.util

import numpy as np
import pytest

_FLOAT = 1  # VL_TYPE_FLOAT


def library() -> ctypes.CDLL:
    """Loads the library; skips the test where it is not installed."""
    name = ctypes.util.find_library("vl") or "libvl.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        pytest.skip("VLFeat is not installed: apt-get install libvlfeat1")


def fisher(weights, means, variances, x, improved: bool) -> np.ndarray:
    """vl_fisher_encode of descriptors (n d)."""
    arrays = [np.ascontiguousarray(a, np.float32) for a in (means, variances, weights, x)]
    (k, d), n = means.shape, len(x)
    out = np.zeros(2 * k * d, np.float32)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    size = ctypes.c_ulonglong
    library().vl_fisher_encode(
        out.ctypes.data_as(ctypes.c_void_p), _FLOAT, pointers[0], size(d), size(k), *pointers[1:], size(n),
        3 if improved else 0,
    )  # fmt: skip
    return out


def vlad(centers, x, assignments, intra: bool, root: bool) -> np.ndarray:
    """vl_vlad_encode of descriptors (n d) that belong to words (n k); of length 1."""
    arrays = [np.ascontiguousarray(a, np.float32) for a in (centers, x, assignments)]
    (k, d), n = centers.shape, len(x)
    out = np.zeros(k * d, np.float32)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
    size = ctypes.c_ulonglong
    library().vl_vlad_encode(
        out.ctypes.data_as(ctypes.c_void_p), _FLOAT, pointers[0], size(d), size(k), pointers[1], size(n), pointers[2],
        int(intra) | 2 * int(root),
    )  # fmt: skip
    return out
