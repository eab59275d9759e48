"""The preprocessing that belongs to published weights: size, how it is cropped, and the statistics."""

import re
from typing import NamedTuple


class Preprocessing(NamedTuple):
    """Resize the shorter side to `size` / `crop`, cut the centre of `size`, normalise.

    Attributes:
      size: rows and columns of what the model is given.
      crop: side of the crop divided by the shorter side of the resized image, in (0, 1].
      method: of resizing, a name of `data.transforms.METHODS`.
      statistics: mean and standard deviation, a name of `data.augment.STATISTICS`.
    """

    size: int = 224
    crop: float = 0.875
    method: str = "bilinear"
    statistics: str = "imagenet"

    def transform(self) -> str:
        """Returns the host transform as configs write it."""
        return f"resize_crop({self.size}, resize={int(self.size / self.crop)}, method='{self.method}')"


# Library, pattern of its names, preprocessing: the first that matches holds. As the libraries' own model cards say.
TABLE: tuple[tuple[str, str, Preprocessing], ...] = (
    ("timm", r"resnetv2_.*_bit", Preprocessing(448, 1.0, "bilinear", "inception")),
    ("timm", r"vit_.*_384", Preprocessing(384, 1.0, "bicubic", "inception")),
    ("timm", r"vit_.*", Preprocessing(224, 0.9, "bicubic", "inception")),
    ("timm", r"(mixer|gmixer|gmlp)_.*", Preprocessing(224, 0.875, "bicubic", "inception")),
    ("timm", r"resmlp_.*", Preprocessing(224, 0.9, "bicubic", "imagenet")),
    ("timm", r"convmixer_.*", Preprocessing(224, 0.96, "bicubic", "imagenet")),
    ("timm", r".*", Preprocessing(224, 0.875, "bicubic", "imagenet")),
    ("mae", r".*", Preprocessing(224, 0.875, "bicubic", "imagenet")),
    ("transformers", r".*", Preprocessing(224, 1.0, "bilinear", "inception")),
    ("big_vision", r".*", Preprocessing(224, 0.875, "bilinear", "inception")),
    ("big_transfer", r".*", Preprocessing(480, 0.9375, "bilinear", "inception")),
    ("", r".*", Preprocessing()),
)


def of(library: str, name: str) -> Preprocessing:
    """Returns the preprocessing of a library's model; torchvision's usual one where nothing else is known."""
    return next(p for lib, pattern, p in TABLE if lib in ("", library) and re.fullmatch(pattern, name))
