"""The preprocessing of published weights: image size, cropping, and statistics."""

import re
from typing import NamedTuple

from recvis_jax.pretrained import timm_names, torchvision


class Preprocessing(NamedTuple):
    """Resize the shorter side to `size` / `crop`, crop the centre of `size`, normalise.

    Attributes:
      size: rows and columns of the model's input.
      crop: side of the crop divided by the shorter side of the resized image, in (0, 1].
      method: of resizing, a name of `data.transforms.METHODS`.
      statistics: mean and standard deviation, a name of `data.augment.STATISTICS` or a pair.
      squash: resize both sides to `size` whatever the aspect ratio, instead of cropping.
    """

    size: int = 224
    crop: float = 0.875
    method: str = "bilinear"
    statistics: str | tuple[tuple[float, ...], tuple[float, ...]] = "imagenet"
    squash: bool = False

    def transform(self) -> str:
        """Returns the host transform as written in configs."""
        if self.squash:
            return f"resize({(self.size, self.size)}, method='{self.method}')"
        return f"resize_crop({self.size}, resize={int(self.size / self.crop)}, method='{self.method}')"


# OpenAI's statistics for CLIP.
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_CAFFE = ((122.679 / 255, 116.669 / 255, 104.006 / 255), (1 / 255,) * 3)
_RETRAINED = "|".join(torchvision.RETRAINED)

# Library, pattern of its names (timm's with their tags), preprocessing: the first match counts.
TABLE: tuple[tuple[str, str, Preprocessing], ...] = (
    # `Weights.transforms()`
    ("torchvision", rf"({_RETRAINED})(\.IMAGENET1K_V2|\.DEFAULT)?", Preprocessing(crop=224 / 232)),
    ("torchvision", r".*", Preprocessing()),
    # `pretrained_cfg`
    ("timm", r".*\.(tv_in1k|fb_s\w*sl_.*)", Preprocessing()),
    ("timm", r".*resnet.*\.tv2_in1k", Preprocessing(size=176)),
    ("timm", r"resnet.*\.a3_in1k", Preprocessing(160, 0.95, "bicubic")),
    ("timm", r"resnet50\.a1h_in1k", Preprocessing(176, 0.9, "bicubic")),
    ("timm", r"resnet50_gn\..*", Preprocessing(224, 0.94, "bicubic")),
    ("timm", r"resnet34\.ra4_.*", Preprocessing(224, 0.9, "bicubic", "inception")),
    ("timm", r"resnet50\.bamboo", Preprocessing(224, 1.0, "bicubic")),
    ("timm", r"resnet\d+\.(a1h?|a2|b[12]k|c[12]|d)_in1k", Preprocessing(224, 0.95, "bicubic")),
    ("timm", r"resnetv2_152x4_bit\.goog_in21k_ft_in1k", Preprocessing(480, 1.0, "bilinear", "inception")),
    ("timm", r"resnetv2_.*\.goog_in21k_ft_in1k", Preprocessing(448, 1.0, "bilinear", "inception")),
    ("timm", r"resnetv2_.*\.goog_in21k", Preprocessing(224, 0.875, "bilinear", "inception")),
    ("timm", r"resnetv2_.*_384", Preprocessing(384, 1.0, "bicubic", "inception")),
    ("timm", r"mixer_.*\.miil_.*", Preprocessing(224, 0.875, "bilinear", "none")),
    ("timm", r"(resnetv2|mixer|gmlp)_.*", Preprocessing(224, 0.875, "bicubic", "inception")),
    ("timm", r"deit_.*_384\..*", Preprocessing(384, 1.0, "bicubic")),
    ("timm", r"(deit_.*|vit_.*_224\.(dino|mae|in\w+_ijepa))", Preprocessing(224, 0.9, "bicubic")),
    ("timm", r"vit_.*_448\..*", Preprocessing(448, 1.0, "bicubic")),
    ("timm", r"vit_.*\.bamboo", Preprocessing(224, 1.0, "bicubic", _CLIP)),
    *(
        ("timm", rf"vit_.*_siglip_.*{size}\..*", Preprocessing(size, 0.9, "bicubic", "inception"))
        for size in (224, 256, 384, 512)
    ),
    ("timm", r"vit_.*_384\..*", Preprocessing(384, 1.0, "bicubic", "inception")),
    ("timm", r"vit_.*", Preprocessing(224, 0.9, "bicubic", "inception")),
    ("timm", r"convmixer_.*", Preprocessing(224, 0.96, "bicubic")),
    ("timm", r".*", Preprocessing(224, 0.875, "bicubic")),
    # `build_transform` of the evaluation; README_resmlp.md
    ("mae", r".*", Preprocessing(224, 0.875, "bicubic")),
    ("deit", r"resmlp.*", Preprocessing(224, 0.9, "bicubic")),
    ("deit", r".*_384", Preprocessing(384, 0.875, "bicubic")),
    ("deit", r".*", Preprocessing(224, 0.875, "bicubic")),
    # preprocessor_config.json
    ("transformers", r"facebook/.*", Preprocessing(squash=True)),
    ("transformers", r".*-384", Preprocessing(384, statistics="inception", squash=True)),
    ("transformers", r".*", Preprocessing(statistics="inception", squash=True)),
    # vision_transformer's input_pipeline.py; big_vision's configs/vit_i1k.py; both without antialiasing
    ("big_vision", r".*(ViT-|Mixer-).*", Preprocessing(statistics="inception", squash=True)),
    ("big_vision", r".*", Preprocessing(statistics="inception")),
    # bit_hyperrule.py for fine-tuned weights, timm's for the others
    ("big_transfer", r".*-ILSVRC2012", Preprocessing(480, statistics="inception", squash=True)),
    ("big_transfer", r".*_T_384", Preprocessing(384, 1.0, "bicubic", "inception")),
    ("big_transfer", r".*_160", Preprocessing(160, 0.875, "bicubic", "inception")),
    ("big_transfer", r".*_224", Preprocessing(224, 0.875, "bicubic", "inception")),
    ("big_transfer", r".*", Preprocessing(statistics="inception")),
    # Caffe's: the mean of ImageNet's pixels, on the scale of 0 to 255
    ("ndf", r".*", Preprocessing(227, 227 / 256, statistics=_CAFFE)),
    ("keras_vars", r".*", Preprocessing(statistics=_CAFFE)),
    ("", r".*", Preprocessing()),
)


def of(library: str, name: str) -> Preprocessing:
    """Returns the preprocessing of a library's model; by default torchvision's usual one."""
    name = timm_names.full(name) if library == "timm" else name
    return next(p for lib, pattern, p in TABLE if lib in ("", library) and re.fullmatch(pattern, name))
