"""VLFeat's C library by ctypes (Debian: libvlfeat1): dense SIFT and HOG of one grey image at a time."""

import ctypes
from typing import NamedTuple

import numpy as np
import pytest

MISSING = "VLFeat is not installed; on Debian and Ubuntu: apt-get install libvlfeat1"
FLOATS = ctypes.POINTER(ctypes.c_float)


class Geometry(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("bins_t", "bins_x", "bins_y", "size_x", "size_y")]


class Keypoint(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("x", "y", "s", "norm")]


class Filter(ctypes.Structure):
    """The beginning of `VlDsiftFilter` of version 0.9.21, whose accessors are inlined into programs written in C."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("width", "height", "step_x", "step_y", "min_x", "min_y", "max_x", "max_y")),
        ("geometry", Geometry),
        ("flat", ctypes.c_int),
        ("window_size", ctypes.c_double),
        ("frames_count", ctypes.c_int),
        ("size", ctypes.c_int),
        ("frames", ctypes.POINTER(Keypoint)),
        ("descriptors", FLOATS),
    ]


class Found(NamedTuple):
    descriptors: np.ndarray  # (n 128)
    positions: np.ndarray  # (n 2), x and y in pixels
    norms: np.ndarray  # (n)


def library() -> ctypes.CDLL:
    """Returns VLFeat, or skips the test."""
    try:
        vl = ctypes.CDLL("libvl.so.1")
    except OSError:
        pytest.skip(MISSING)
    vl.vl_dsift_new_basic.restype = ctypes.POINTER(Filter)
    vl.vl_hog_new.restype = ctypes.c_void_p
    for name in ("vl_hog_get_width", "vl_hog_get_height", "vl_hog_get_dimension"):
        getattr(vl, name).restype = ctypes.c_size_t
    return vl


class Dense:
    """A filter of VLFeat, for images of one size."""

    def __init__(self, h: int, w: int, step: int, bin_size: int, flat: bool = True, window_size=2.0, origin=0):
        self.vl = library()
        self.filter = self.vl.vl_dsift_new_basic(w, h, step, bin_size)
        self.filter.contents.flat, self.filter.contents.window_size = int(flat), window_size
        self.filter.contents.min_x = self.filter.contents.min_y = origin

    def process(self, image: np.ndarray) -> None:
        """Computes descriptors into the filter's own memory, which C programs read there."""
        self.vl.vl_dsift_process(self.filter, image.ctypes.data_as(FLOATS))

    def __call__(self, image: np.ndarray) -> Found:
        self.process(np.ascontiguousarray(image, np.float32))
        f = self.filter.contents
        frames = [(k.x, k.y, k.norm) for k in f.frames[: f.frames_count]]
        found = np.ctypeslib.as_array(f.descriptors, (f.frames_count, f.size)).copy()
        return Found(found, np.array(frames)[:, :2], np.array(frames)[:, 2])


def hog(image: np.ndarray, cell: int, directions: int, uoctti: bool, interpolate: bool) -> np.ndarray:
    """vl_hog of an image (h w c), as (rows columns d)."""
    vl = library()
    size = ctypes.c_size_t
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    self = ctypes.c_void_p(vl.vl_hog_new(int(uoctti), size(directions), 0))
    vl.vl_hog_set_use_bilinear_orientation_assignments(self, int(interpolate))
    c, h, w = planes.shape
    vl.vl_hog_put_image(self, planes.ctypes.data_as(FLOATS), size(w), size(h), size(c), size(cell))
    shape = [getattr(vl, f"vl_hog_get_{name}")(self) for name in ("dimension", "height", "width")]
    out = np.zeros(shape, np.float32)
    vl.vl_hog_extract(self, out.ctypes.data_as(FLOATS))
    vl.vl_hog_delete(self)
    return out.transpose(1, 2, 0)
