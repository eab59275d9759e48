"""A dozen drawn pictures and their annotations in three formats, for tests: every number is known by construction."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = ("disc", "bar", "cross")
IDS = (3, 7, 20)  # of COCO's categories, with gaps
COLOURS = {"disc": (230, 60, 60), "bar": (60, 200, 60), "cross": (70, 90, 240)}
SPLITS = {"train": range(8), "val": range(8, 10), "test": range(10, 12)}
POINTS = ("left_end", "right_end")


class Object(NamedTuple):
    """One drawn object: its class, and whole pixels x0 y0 x1 y1, ends excluded."""

    name: str
    box: tuple[int, int, int, int]


class Drawing(NamedTuple):
    image: np.ndarray
    objects: tuple[Object, ...]


def drawing(number: int) -> Drawing:
    """Picture `number`: 0 to 3 objects that do not touch, in four columns; picture 5 has none. Sizes differ."""
    rng = np.random.default_rng(number)
    h, w = 60 + 4 * (number % 4), 96 + 8 * (number % 3)
    image = np.full((h, w, 3), 30 + 3 * number, np.uint8)  # no two alike
    objects = []
    for k in range(0 if number == 5 else 1 + number % 3):
        name = CLASSES[(number + k) % 3]
        height, width = int(rng.integers(12, 40)), int(rng.integers(12, w // 4))
        y0, x0 = int(rng.integers(0, h - height)), k * w // 4 + int(rng.integers(0, w // 4 - width + 1))
        objects.append(Object(name, (x0, y0, x0 + width, y0 + height)))
        part = image[y0 : y0 + height, x0 : x0 + width]
        if name == "bar":
            part[:] = COLOURS[name]
        elif name == "disc":
            y, x = np.mgrid[:height, :width]
            inside = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2 <= 0.25
            part[inside] = COLOURS[name]
        else:
            part[height // 3 : -(height // 3)] = COLOURS[name]
            part[:, width // 3 : -(width // 3)] = COLOURS[name]
    return Drawing(image, tuple(objects))


def all_drawings() -> dict[str, Drawing]:
    """File name -> picture, in order."""
    return {f"p{number:02d}.png": drawing(number) for number in range(12)}


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


def corners(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(folder: Path, masks: bool = True, points: bool = False) -> Path:
    """Writes annotations/instances_SPLIT.json and SPLIT/pictures, with category ids 3, 7 and 20."""
    for split, numbers in SPLITS.items():
        images, things = [], []
        for number in numbers:
            made = drawing(number)
            write(folder / split / f"p{number:02d}.png", made.image)
            h, w = made.image.shape[:2]
            images.append({"id": 100 + number, "file_name": f"p{number:02d}.png", "height": h, "width": w})
            for thing in made.objects:
                x0, y0, x1, y1 = thing.box
                one = {
                    "id": len(things) + 1000 * number, "image_id": 100 + number, "iscrowd": 0,
                    "category_id": IDS[CLASSES.index(thing.name)], "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                }  # fmt: skip
                if masks:
                    one["segmentation"] = [corners(thing.box)]
                if points:
                    one["keypoints"] = [x0, y0, 2, x1 - 1, y0, 1]
                things.append(one)
        categories = [{"id": i, "name": n} for i, n in zip(IDS, CLASSES, strict=True)]
        if points:
            categories = [{**c, "keypoints": list(POINTS)} for c in categories]
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    return folder


def voc(folder: Path) -> Path:
    """Writes Annotations/, JPEGImages/ and ImageSets/Main/; bars are difficult."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            made = drawing(number)
            write(folder / "JPEGImages" / f"p{number:02d}.png", made.image)
            h, w = made.image.shape[:2]
            things = "".join(
                f"<object><name>{t.name}</name><difficult>{int(t.name == 'bar')}</difficult><bndbox>"
                f"<xmin>{t.box[0] + 1}</xmin><ymin>{t.box[1] + 1}</ymin><xmax>{t.box[2]}</xmax><ymax>{t.box[3]}</ymax>"
                "</bndbox></object>"
                for t in made.objects
            )
            path = folder / "Annotations" / f"p{number:02d}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"<annotation><filename>p{number:02d}.png</filename><size><width>{w}</width><height>{h}</height>"
                f"<depth>3</depth></size>{things}</annotation>"
            )
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"p{n:02d}\n" for n in numbers))
    return folder


def yolo(folder: Path) -> Path:
    """Writes data.yaml, images/SPLIT/ and labels/SPLIT/; crosses are polygons, and class numbers have gaps."""
    numbers_of = dict(zip(CLASSES, (0, 2, 5), strict=True))
    for split, numbers in SPLITS.items():
        for number in numbers:
            made = drawing(number)
            write(folder / "images" / split / f"p{number:02d}.png", made.image)
            h, w = made.image.shape[:2]
            lines = []
            for t in made.objects:
                x0, y0, x1, y1 = t.box
                if t.name == "cross":
                    numbers_ = [v / (w if k % 2 == 0 else h) for k, v in enumerate(corners(t.box))]
                else:
                    numbers_ = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
                lines.append(" ".join(map(str, [numbers_of[t.name], *numbers_])))
            path = folder / "labels" / split / f"p{number:02d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines))
    names = "".join(f"  {k}: {n}\n" for n, k in numbers_of.items())
    (folder / "data.yaml").write_text(
        f"path: ../{folder.name}\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{names}"
    )
    return folder


MAKERS = {"coco": coco, "voc": voc, "yolo": yolo}
