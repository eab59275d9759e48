"""Writes the features of a split: what a layer of a trained model makes of every image.

  python -m recvis_jax.features --workdir=runs/mae --split=train --layers=features,block3 [--pool=mean]
  python -m recvis_jax.features --config=configs/x.py --config.init_from=hf://owner/repo --out=runs/x --split=test

Per layer a memory-mapped `features/NAME.npy`, the labels, and a JSON file with model, step, preprocessing and data
hash.
"""

import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from recvis_jax import cli, errors
from recvis_jax import config as configs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Instead of --workdir: a config whose init_from names the weights.", lock_config=False,
    accept_new_attributes=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default that of the run.")
_SPLIT = flags.DEFINE_string("split", "train", "train, val or test as the config has them, or a split expression.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "best, last, a step, or random; by default the best.")
_LAYERS = flags.DEFINE_list("layers", ["features"], "Names of intermediates; a wrong one is answered with all of them.")
_POOL = flags.DEFINE_string("pool", "mean", "Of tokens or maps: mean, max, first, rest, first_rest, flatten.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace features that are there.")
_CACHE = flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")

PIXELS = "pixels"  # the layer before the first: the image as the model is given it, flattened


def main(argv: list[str]) -> int:
    del argv
    cli.start_jax(_CACHE.value)
    trained, folder = open_flags(_WORKDIR.value, _CONFIG, _OUT.value, _CHECKPOINT.value)
    found = compute(trained, folder, _SPLIT.value, _LAYERS.value, _POOL.value, overwrite=_OVERWRITE.value)
    for layer, f in found.items():
        n, d = f.values.shape
        print(f"{layer}: {n:,} x {d} in {Path(f.values.filename)}")
    return 0


def open_flags(workdir: str | None, config: Any, out: str | None, which: str | None) -> tuple[Any, Path]:
    """Opens what the flags of `features` and `probe` name; returns (Trained, folder to write to)."""
    from recvis_jax import trained

    if (workdir is None) == (config.value is None):
        raise errors.BadRequest("give one of --workdir=RUN and --config=FILE, as --workdir=runs/mae.")
    if workdir is not None:
        folder = Path(workdir).expanduser().absolute()
        return trained.of_run(folder, trained.read_config(folder), which), Path(out or folder).expanduser().absolute()
    if out is None:
        raise errors.BadRequest("with --config, --out=FOLDER says where the features go.")
    return trained.of_config(configs.read(config, ""), which), Path(out).expanduser().absolute()


def compute(
    trained: Any,
    folder: Path,
    split: str,
    layers: Sequence[str],
    pool: str,
    *,
    overwrite: bool = False,
    reuse: bool = False,
) -> dict[str, Any]:
    """Returns {layer: Features} of a split: from disk where `reuse` is set, else computed and written.

    Args:
      trained: a `trained.Trained`.
      folder: where `features/` lies.
      split: train, val or test as the config has them, or a split expression.
      layers: names of intermediates, or `PIXELS`.
      pool: see `models.probe.pooled`.
      overwrite: replaces what is there.
      reuse: takes what is there.

    Raises:
      BadRequest: an unknown layer, pool or split; features that are there and stale, or there at all, where neither
        `reuse` nor `overwrite` allows them.
    """
    from recvis_jax import build
    from recvis_jax.evaluation import features
    from recvis_jax.models import probe

    data = trained.run.data
    section = trained.config["data"]
    names = {"train": data.train, "val": data.val, "test": data.test}
    chosen = names.get(split, split)
    if not chosen:
        raise errors.BadRequest(f"the run has no {split} split; give an expression, such as --split='train[90%:]'.")
    source = data.open(chosen) if isinstance(chosen, str) else chosen
    weights = "random" if trained.name == "random" else f"step{trained.step}" if trained.step else trained.name
    checksum = _checksum(trained.variables)
    origins, paths = {}, {}
    for layer in dict.fromkeys(layers):
        raw = layer == PIXELS
        paths[layer] = features.path_of(folder, split, layer, "flatten" if raw else pool, "" if raw else weights)
        origins[layer] = {
            "layer": layer,
            "pool": "flatten" if raw else pool,
            "model": {} if raw else trained.config["model"],
            "weights": {} if raw else {"step": trained.step, "checksum": checksum},
            "preprocessing": {k: section.get(k, d) for k, d in (("eval_transform", ""), ("statistics", "none"))},
            "data": {"name": source.name, "examples": source.length, "hash": source.digest},
        }
    found = {}
    if not overwrite:
        found = {layer: f for layer in paths if (f := features.read(paths[layer], origins[layer])) is not None}
        if found and not reuse:
            there = ", ".join(str(paths[layer]) for layer in found)
            raise errors.BadRequest(f"there are such features already, and they are not stale: {there} (--overwrite).")
    rest = [layer for layer in paths if layer not in found]
    if rest:
        model = trained.run.model

        def layers_of(variables: Any, batch: dict) -> dict[str, Any]:
            acts = model.apply(variables, batch["image"], train=False)[1] if set(rest) != {PIXELS} else {}
            acts = {**acts, PIXELS: batch["image"].reshape(len(batch["image"]), -1)}
            return {layer: probe.pooled(acts, layer, pool) for layer in rest}

        extract = features.make_extract(layers_of, data.preprocess, trained.run.mesh)
        batches = build.eval_batches(trained.run, source)
        began = time.monotonic()
        features.write(
            {layer: paths[layer] for layer in rest}, origins, batches,
            lambda batch: extract(trained.variables, batch), source.length,
            lambda done: _progress(source.name, done, source.length, began),
        )  # fmt: skip
        found |= {layer: f for layer in rest if (f := features.read(paths[layer], origins[layer]))}
    return {layer: found[layer] for layer in paths}


def _progress(name: str, done: int, length: int, began: float) -> None:
    if sys.stderr.isatty():
        rate = done / max(time.monotonic() - began, 1e-9)
        print(f"\rfeatures of {name}: {done:,} of {length:,}, {rate:.0f} a second", end="", file=sys.stderr)
        if done >= length:
            print(file=sys.stderr)


def _checksum(variables: Any) -> str:
    """Returns one checksum of all variables."""
    from recvis_jax import trees

    return f"{zlib.crc32(repr(sorted(trees.fingerprint(variables).items())).encode()):08x}"


if __name__ == "__main__":
    cli.run(main)
