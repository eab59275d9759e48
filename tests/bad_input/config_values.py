"""Wrong values of every key of every section of a config, made from the signatures of the functions that take them."""

import copy
import inspect
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from recvis_jax import build, errors, models, trained
from recvis_jax.data import augment, transforms, windows
from recvis_jax.ranges import RANGES
from recvis_jax.tasks import TASKS
from recvis_jax.train import train
from recvis_jax.training import optim, optimizers, schedules, sharding

# A run of 2 steps, should a wrong value be taken.
BASE: dict[str, Any] = dict(
    steps=2, batch_size=16, eval_batch_size=16, log_every=1, eval_every=2, checkpoint_every=2,
    data=dict(name="digits", train="train[:48]", val="train[48:64]", test="test[:16]"),
    model=dict(name="linear"), optim=dict(name="sgd", lr=0.1, schedule="constant"),
)  # fmt: skip

# The smallest of each class of models, for images of 8x8 unless others are resized.
MODELS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": dict(hidden=(4,)),
    "lenet5": dict(_resize=16),
    "speednet": dict(widths=(4, 4, 4, 4), blocks=(0, 0, 0), _resize=28),
    "convnet": dict(_resize=16),
    "resnet20": dict(width=2, depth=8),
    "vgg11": dict(width=2, hidden=4, blocks=(1, 1, 1), _resize=32),
    "resnet18": dict(width=2, blocks=(1, 1), _resize=32),
    "bit_r50x1": dict(width=2, blocks=(1, 1), norm_groups=2, _resize=32),
    "vit_s16": dict(patch_size=4, width=8, depth=1, heads=2),
    "convmixer_768_32": dict(patch_size=4, width=4, depth=1, kernel_size=3),
    "ff_only_ti16": dict(patch_size=4, width=8, depth=1),
    "gmlp_ti16": dict(patch_size=4, width=8, depth=1),
    "mixer_s16": dict(patch_size=4, width=8, depth=1, tokens_dim=4, channels_dim=8),
    "resmlp_12": dict(patch_size=4, width=8, depth=1),
    "mae_b16": dict(patch_size=4, width=8, depth=1, heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2),
    "probe": dict(backbone=dict(name="mlp", hidden=(4,))),
}


class Wrong(NamedTuple):
    """A config with one wrong value.

    Attributes:
      key: path of the key, such as "config.optim.lr".
      value: what it is.
      sections: the keyword arguments of `train`.
    """

    key: str
    value: Any
    sections: dict[str, Any]

    @property
    def name(self) -> str:
        """The key and the value, for a list of cases."""
        return f"{self.key}={errors.shown(self.value, 60)}"


_OF_DATA = ("model", "image_shape", "num_classes", "multi_label", "fields", "vocabulary")  # of a task's arguments


def cases() -> Iterator[Wrong]:
    """Yields wrong values of all keys whose type or range a signature says, and of all operations' arguments."""
    yield from _of(train, "", given=("workdir", "config"))
    yield from _of(build.open_data, "data", given=("recorded",))
    scenes = BASE["data"] | dict(name="fashion_scenes", mock=4, train="train[:75%]", val="train[75%:]", test="test")
    yield from _of(windows.labelled, "data.windows", given=("source",), data=scenes | dict(windows=dict(size=8)))
    given = ("params", "total_steps", "batch_size", "steps_per_epoch")
    yield from _of(optim.make_optimizer, "optim", given=given)
    for name, rule in optimizers.OPTIMIZERS.items():
        yield from _of(rule.direction, "optim.optimizer_args", optim=BASE["optim"] | dict(name=name))
    for name, make in schedules.SCHEDULES.items():
        yield from _of(make, "optim.schedule_args", optim=BASE["optim"] | dict(schedule=name))
    for name, make in TASKS.items():
        yield from _of(make, "task", given=_OF_DATA, task=dict(name=name))
    yield from _of(sharding.make_mesh, "sharding", given=("devices",))
    yield from _of(trained.make_prober, "probe", given=("run",))
    for name, tiny in MODELS.items():
        given_here = {k: v for k, v in tiny.items() if k != "_resize"}
        more: dict[str, Any] = {"model": dict(name=name, **given_here)}
        if "_resize" in tiny:
            resize = f"resize({tiny['_resize']})"
            more["data"] = BASE["data"] | dict(transform=resize, eval_transform=resize)
        if name.startswith("mae"):
            more["task"] = dict(name="mae")
        yield from _of((models.MODELS | models.AROUND)[name], "model", given=("dtype",), **more)
    for kind, table in (("transform", transforms.OPERATIONS), ("augment", augment.OPERATIONS)):
        for name, build_one in table.items():
            yield from _of_operation(kind, name, build_one)


def _of(fn: Any, section: str, given: tuple[str, ...] = (), **changes: Any) -> Iterator[Wrong]:
    for name, parameter in errors.keywords(fn).items():
        if name in given:
            continue
        for value in wrong(name, parameter.annotation):
            sections = copy.deepcopy(BASE | changes)
            node = sections
            for part in section.split(".") if section else ():
                node = node.setdefault(part, {})
            node[name] = value
            yield Wrong(".".join(p for p in ("config", section, name) if p), value, sections)


def _of_operation(kind: str, name: str, make: Any) -> Iterator[Wrong]:
    parameters = inspect.signature(make).parameters
    fill = {p.name: 4 if "size" in p.name else 0.5 for p in parameters.values() if p.default is inspect.Parameter.empty}
    for parameter in parameters:
        for value in ("'x'", "None", "-1", "-0.5", "1e400", "10**30", "1" + "0" * 30, "(1, 2, 3)", "()", "{}", "[[]]"):
            if value == "None" and parameters[parameter].default is None:
                continue
            words = {**fill, parameter: value}
            text = f"{name}({', '.join(f'{k}={v}' for k, v in words.items())})"
            sections = copy.deepcopy(BASE)
            sections["data"][kind] = text
            yield Wrong(f"config.data.{kind}", text, sections)


def wrong(name: str, hint: Any) -> list[Any]:
    """Returns values that a parameter called `name` with this annotation cannot have."""
    hints = (hint,)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hints = typing.get_args(hint)
    origins = {typing.get_origin(h) or h for h in hints}
    takes = {
        "text": bool(origins & {str, typing.Literal}),
        "number": bool(origins & {int, float}),
        "bool": bool in origins,
        "tuple": any(
            isinstance(o, type) and issubclass(o, (tuple, list, typing.Sequence)) and o is not str
            for o in origins
            if isinstance(o, type)
        ),
        "dict": dict in origins,
        "none": types.NoneType in origins,
    }
    if not any(takes.values()):
        return []  # any other kind of annotation
    out: list[Any] = []
    samples = {
        "text": ["x y"],
        "number": [3, 0.25],
        "bool": [True],
        "tuple": [[], [None]],
        "dict": [{}, {"a b": 1}],
        "none": [None],
    }
    for kind, values in samples.items():
        if not takes[kind]:
            out += values
    if takes["number"]:
        out += [math.nan, math.inf, -math.inf, -1e300, 10**30, 10**400]
        if float not in origins:
            out += [1.5]
        if name in RANGES:
            valid = RANGES[name]
            out += [valid.low if valid.above else valid.low - 1, valid.high if valid.below else valid.high * 2]
    if takes["tuple"]:
        out += [[math.nan], [[[]]], [{}], [-(10**30)]]
    if typing.Literal in origins or name in CHOICES:
        out += ["", "no such", "\x1b[2J", "a" * 10_000] if name not in OPTIONAL else ["no such", "a" * 10_000]
    return out


# Keys of text that choose among names, and those of them that may be empty.
CHOICES = (
    "name activation pool positions norm shortcut loss views sampling schedule strategy decay_style statistics "
    "transform eval_transform augment train val test layer shape"
).split()
OPTIONAL = ("transform", "eval_transform", "augment", "val", "test", "loss", "train")
