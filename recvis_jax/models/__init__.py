"""Models: flax modules, x (b h w c) -> (logits (b k), named intermediates). `MODELS` is the table of contents."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from recvis_jax.errors import BadRequest, check_kwargs, choose, keywords, shown
from recvis_jax.models.alexnet import AlexNet
from recvis_jax.models.bag_of_words import BagOfWords
from recvis_jax.models.bit import VARIANTS as BITS
from recvis_jax.models.bit import BiT
from recvis_jax.models.centre import VARIANTS as CENTRES
from recvis_jax.models.centre import CentrePoints
from recvis_jax.models.cifar_resnet import CifarResNet
from recvis_jax.models.convmixer import VARIANTS as CONVMIXERS
from recvis_jax.models.convmixer import ConvMixer
from recvis_jax.models.convnet import ConvNet
from recvis_jax.models.detr import DETR
from recvis_jax.models.detr import VARIANTS as DETRS
from recvis_jax.models.ff_only import VARIANTS as FF_ONLY
from recvis_jax.models.ff_only import FFOnly
from recvis_jax.models.gmlp import GMLP
from recvis_jax.models.gmlp import VARIANTS as GMLPS
from recvis_jax.models.googlenet import GoogLeNet
from recvis_jax.models.hybrid import VARIANTS as HYBRIDS
from recvis_jax.models.hybrid import HybridViT
from recvis_jax.models.image_gpt import VARIANTS as IMAGE_GPTS
from recvis_jax.models.image_gpt import ImageGPT
from recvis_jax.models.image_transformer import VARIANTS as IMAGE_TRANSFORMERS
from recvis_jax.models.image_transformer import ImageTransformer
from recvis_jax.models.layer_head import Probe
from recvis_jax.models.lenet import LeNet5
from recvis_jax.models.linear import Linear
from recvis_jax.models.mae import MAE
from recvis_jax.models.mae import VARIANTS as MAES
from recvis_jax.models.mixer import VARIANTS as MIXERS
from recvis_jax.models.mixer import Mixer
from recvis_jax.models.mlp import MLP
from recvis_jax.models.resmlp import VARIANTS as RESMLPS
from recvis_jax.models.resmlp import ResMLP
from recvis_jax.models.resnet import VARIANTS as RESNETS
from recvis_jax.models.resnet import ResNet
from recvis_jax.models.segmenters import VARIANTS as SEGMENTERS
from recvis_jax.models.segmenters import Segmenter
from recvis_jax.models.speednet import SpeedNet
from recvis_jax.models.squeezenet import VARIANTS as SQUEEZENETS
from recvis_jax.models.squeezenet import SqueezeNet
from recvis_jax.models.translator import VARIANTS as TRANSLATORS
from recvis_jax.models.translator import Translator
from recvis_jax.models.vgg import VARIANTS as VGGS
from recvis_jax.models.vgg import VGG, VGGM
from recvis_jax.models.vit import VARIANTS as VITS
from recvis_jax.models.vit import ViT

MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "lenet5": LeNet5,
    "speednet": SpeedNet,
    "convnet": ConvNet,
    **{f"resnet{d}": partial(CifarResNet, depth=d) for d in (20, 32, 44, 56, 110)},
    **{f"plain{d}": partial(CifarResNet, depth=d, shortcut="none") for d in (20, 32, 44, 56, 110)},
    "alexnet": AlexNet,
    "vgg_m": VGGM,
    **{name: partial(VGG, **kw) for name, kw in VGGS.items()},
    "googlenet": GoogLeNet,
    **{name: partial(SqueezeNet, **kw) for name, kw in SQUEEZENETS.items()},
    **{name: partial(ResNet, **kw) for name, kw in RESNETS.items()},
    **{name: partial(BiT, **kw) for name, kw in BITS.items()},
    **{name: partial(ViT, **kw) for name, kw in VITS.items()},
    **{name: partial(HybridViT, **kw) for name, kw in HYBRIDS.items()},
    **{name: partial(MAE, **kw) for name, kw in MAES.items()},
    **{name: partial(ConvMixer, **kw) for name, kw in CONVMIXERS.items()},
    **{name: partial(FFOnly, **kw) for name, kw in FF_ONLY.items()},
    **{name: partial(GMLP, **kw) for name, kw in GMLPS.items()},
    **{name: partial(Mixer, **kw) for name, kw in MIXERS.items()},
    **{name: partial(ResMLP, **kw) for name, kw in RESMLPS.items()},
}

# Models of sequences: `__call__(tokens (b n), *, train) -> (logits (b n v), acts)`, that generate token by token.
DECODERS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(ImageGPT, **kw) for name, kw in IMAGE_GPTS.items()},
    **{name: partial(ImageTransformer, **kw) for name, kw in IMAGE_TRANSFORMERS.items()},
    **{name: partial(Translator, **kw) for name, kw in TRANSLATORS.items()},
}

# Models that find objects, or the class of every pixel, around a backbone:
# `__call__(image, *, train, valid=None) -> (output, acts)`, where `valid` (b h w) is false on padding.
DENSE: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(DETR, **kw) for name, kw in DETRS.items()},
    **{name: partial(CentrePoints, **kw) for name, kw in CENTRES.items()},
    **{name: partial(Segmenter, **kw) for name, kw in SEGMENTERS.items()},
}

# Models that wrap another one, their attribute `backbone`: a dict of its name and attributes, or a built model.
AROUND: dict[str, Callable[..., nn.Module]] = {"probe": Probe}

# Models that are learnt without gradients, by `represent.learn`.
LEARNT: dict[str, Callable[..., nn.Module]] = {"bag_of_words": BagOfWords}

# All that `create` knows.
CONSTRUCTORS = MODELS | DECODERS | DENSE | AROUND | LEARNT


_MOST_BLOCKS = 200


def create(name: str, **kw: Any) -> nn.Module:
    """Returns the model `name` of `CONSTRUCTORS`, built with the attributes `kw`.

    What `kw` says of a `backbone` without naming it is said of the model's usual one.

    Raises:
      BadRequest: an unknown name or attribute, or a value of the wrong type.

    Example:
      >>> model = create("resnet20", num_classes=10)
      >>> run = lambda x: model.init_with_output(jax.random.key(0), x, train=False)
      >>> (logits, acts), variables = jax.eval_shape(run, jnp.zeros((2, 32, 32, 3)))
      >>> logits.shape, acts["features"].shape
      ((2, 10), (2, 64))
    """
    constructor = choose(CONSTRUCTORS, name, "model")
    check_kwargs(constructor, kw, "model")
    if "backbone" in keywords(constructor) and kw.get("backbone", 0) is None:
        raise BadRequest("model.backbone is None; it takes a dict of the name and keys of a model.")
    _check_length(constructor, kw)
    kw = {k: tuple(v) if isinstance(v, list) else v for k, v in kw.items()}  # lists, from JSON, are not hashable
    usual = getattr(constructor, "keywords", {}).get("backbone")
    backbone = kw.get("backbone", usual)
    if usual and isinstance(backbone, Mapping) and "name" not in backbone:
        backbone = {**usual, **backbone}
    if backbone is not None and not isinstance(backbone, (Mapping, nn.Module)):
        raise BadRequest(f"model.backbone is {shown(backbone)}; it takes a dict of the name and keys of a model.")
    if isinstance(backbone, Mapping):
        if "name" not in backbone:
            raise BadRequest(f"model.backbone.name is missing; there are: {', '.join(MODELS)}.")
        inner = keywords(choose(MODELS, backbone["name"], "model.backbone.name"))
        given = {"num_classes": 0, "dtype": kw.get("dtype", jnp.float32)}  # the backbone's own head is not used
        if "dtype" in backbone:
            raise BadRequest("unknown key model.backbone.dtype; config.dtype sets the type of the computation.")
        kw["backbone"] = create(**{**{k: v for k, v in given.items() if k in inner}, **backbone})
    return constructor(**kw)


def section_of(model: nn.Module) -> dict[str, Any] | None:
    """Returns the name and attributes with which `create` builds this model; None for a class it does not know.

    Example:
      >>> section_of(create("resnet20", num_classes=7))["num_classes"]
      7
    """
    for name, constructor in CONSTRUCTORS.items():
        if type(model) is not getattr(constructor, "func", constructor):
            continue
        values = {k: getattr(model, k) for k in keywords(constructor) if k != "dtype"}
        values = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}  # flax freezes them
        if isinstance(values.get("backbone"), nn.Module):
            values["backbone"] = section_of(values["backbone"])
        plain = (bool, int, float, str, tuple, list, dict, type(None))
        return {"name": name, **values} if all(isinstance(v, plain) for v in values.values()) else None
    return None


def _check_length(constructor: Callable[..., nn.Module], kw: Mapping[str, Any]) -> None:
    """Refuses more blocks than can be traced one by one in reasonable time."""
    depth, blocks = kw.get("depth", 0), kw.get("blocks", ())
    residual = getattr(constructor, "func", constructor) is CifarResNet  # its paper goes up to 1,202 layers
    if depth > _MOST_BLOCKS and not residual and not kw.get("scan"):
        remedy = "; model.scan=True allows more" if "scan" in keywords(constructor) else ""
        raise BadRequest(f"model.depth is {depth}; at most {_MOST_BLOCKS} blocks can be traced one by one{remedy}.")
    if sum(blocks) > 2 * _MOST_BLOCKS:
        raise BadRequest(f"model.blocks is {shown(blocks)}; at most {2 * _MOST_BLOCKS} blocks in total are allowed.")
