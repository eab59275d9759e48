"""The data set `deepforest`: tiles of the aerial photographs with hand-drawn boxes of trees that a package carries.

PyPI's `deepforest` (MIT licence) holds photographs of the National Ecological Observatory Network with about 950 boxes.
No photograph is in two splits.

Reference: Weinstein et al. 2019, "Individual tree-crown detection in RGB imagery using semi-supervised deep learning
  neural networks"; Weinstein et al. 2020, "DeepForest".
"""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recvis_jax.data import annotated_set, image_file, sources, voc
from recvis_jax.data.annotations import Thing
from recvis_jax.data.download import Say
from recvis_jax.errors import BadRequest, command, printable

NAME = "deepforest"
# Of the package's pictures, without their suffix.
SPLITS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),
    "val": ("OSBS_029", "SOAP_061"),
    "test": ("2019_YELL_2_541000_4977000_image_crop",),
}
SIDE, STEP = 256, 192  # pixels of a tile, and from one to the next
SEEN = 0.5  # least share of a box inside a tile of which it is an object
_HINT = "--source is the package's wheel or a folder with its pictures: " + command(
    "pip", "download", "--no-deps", "deepforest==2.1.0"
)


def prepare(source: Path | None, root: Path, overwrite: bool = False, say: Say = print) -> Path:
    """Cuts the photographs into overlapping tiles and prepares these; returns the data set's directory.

    A tree of which a tile shows less than half is a crowd there: it is neither learnt, nor judged.

    Args:
      source: the package's wheel, or a folder below which its pictures lie.
      root: where prepared data sets lie.
      overwrite, say: see `builders.prepare`.

    Raises:
      BadRequest: the pictures are not there.
    """
    if source is None:
        raise BadRequest(f"the photographs of trees come with a package; {_HINT}.")
    with tempfile.TemporaryDirectory() as folder:
        found, tiles = _unpacked(source, Path(folder)), Path(folder) / "tiles"
        for split, names in SPLITS.items():
            _write_split(split, [found[name] for name in names], tiles)
        return annotated_set.prepare(tiles, root, "coco", name=NAME, on_duplicate="keep", overwrite=overwrite, say=say)


def _unpacked(source: Path, folder: Path) -> dict[str, Path]:
    """Returns name -> XML file beside its picture."""
    names = {name for of in SPLITS.values() for name in of}
    suffixes = (".xml", ".png")
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for entry in archive.infolist():
                path = Path(entry.filename)
                if path.stem in names and path.suffix in suffixes and entry.file_size < 2**28:
                    (folder / path.name).write_bytes(archive.read(entry))
        source = folder
    found = {name: next(iter(sorted(source.rglob(f"{name}.xml"))), Path()) for name in names}
    missing = [n for n, p in sorted(found.items()) if not p.name or not p.with_suffix(".png").is_file()]
    if missing:
        raise BadRequest(f"{printable(source)} has no {missing[0]}.png with its .xml; {_HINT}.")
    return found


def _write_split(split: str, files: list[Path], folder: Path) -> None:
    """Writes the tiles of some photographs, and COCO's annotations of them."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for path in files:
        (picture,) = voc.read([path], path.parent).pictures
        loaded = image_file.load(path.with_suffix(".png"), compress_level=0)
        if loaded.data is None:
            raise BadRequest(f"{printable(path.with_suffix('.png'))} cannot be read: {loaded.problem}.")
        pixels = sources.decode(loaded.data, 3, printable(path))
        for name, tile, things in cut(pixels, picture.things):
            number = len(images) + 1
            file = f"{path.stem}_{name}.png"
            cv2.imwrite(str(folder / split / file), tile[..., ::-1])
            images.append({"id": number, "file_name": file, "height": tile.shape[0], "width": tile.shape[1]})
            for thing in things:
                x0, y0, x1, y1 = thing.box
                objects.append(
                    {"id": len(objects) + 1, "image_id": number, "category_id": 1, "iscrowd": int(thing.crowd),
                     "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
                )  # fmt: skip
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "Tree"}]}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def cut(
    pixels: UInt8[np.ndarray, "h w 3"], things: tuple[Thing, ...]
) -> Iterator[tuple[str, UInt8[np.ndarray, "p q 3"], list[Thing]]]:
    """Yields (name, pixels, objects) of overlapping tiles that together show everything.

    Example:
      >>> tree = Thing(0, (100.0, 100.0, 130.0, 130.0))
      >>> [(name, len(found)) for name, tile, found in cut(np.zeros((300, 256, 3), np.uint8), (tree,))]
      [('0_0', 1), ('44_0', 1)]
    """
    h, w = pixels.shape[:2]
    for top in starts(h):
        for left in starts(w):
            tile = pixels[top : top + SIDE, left : left + SIDE]
            found = []
            for thing in things:
                moved = np.array(thing.box) - [left, top, left, top]
                inside = np.clip(moved, 0, [tile.shape[1], tile.shape[0]] * 2)
                whole, seen = ((b[2:] - b[:2]).prod() for b in (moved, inside))
                if (inside[2:] - inside[:2] >= 1).all():
                    x0, y0, x1, y1 = map(float, inside)
                    found.append(Thing(0, (x0, y0, x1, y1), crowd=bool(seen < SEEN * whole)))
            yield f"{top}_{left}", tile, found


def starts(size: int) -> list[int]:
    """Returns where tiles begin along a side: every `STEP` pixels, and a last one that ends with it.

    Example:
      >>> starts(500), starts(200)
      ([0, 192, 244], [0])
    """
    last = max(0, size - SIDE)
    return [*range(0, last, STEP), last]
