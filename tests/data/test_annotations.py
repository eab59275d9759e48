"""COCO, VOC and YOLO say the same of the same picture, in numbers worked by hand; and what is damaged is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import annotations, coco, voc, yolo
from recvis_jax.data.annotations import Runs, Thing

# A picture of 20 rows and 40 columns: a cat over columns 4..13 and rows 2..11, a dog over columns 20..39, rows 10..19.
SIZE, CLASSES, BOXES = (20, 40), ("cat", "dog"), [[4, 2, 14, 12], [20, 10, 40, 20]]

COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 20, "width": 40}, {"id": 9, "file_name": "b.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 17, "bbox": [4, 2, 10, 10], "area": 60.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 18, "bbox": [20, 10, 20, 10], "iscrowd": 1},
    ],
}
VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>20</height><depth>3</depth></size>
<object><name>cat</name><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>3</ymin><xmax>14</xmax><ymax>12</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>21</xmin><ymin>11</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""
YOLO = "0 0.225 0.35 0.25 0.5\n1 0.75 0.75 0.5 0.5\n"


def read_coco(tmp_path, **changes):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(COCO | changes))
    return coco.read(path, tmp_path)


def read_voc(tmp_path, text=VOC):
    (tmp_path / "a.xml").write_text(text)
    return voc.read([tmp_path / "a.xml"], tmp_path)


def read_yolo(tmp_path, text=YOLO, **kw):
    (tmp_path / "a.txt").write_text(text)
    return yolo.read([(tmp_path / "a.jpg", tmp_path / "a.txt", SIZE)], CLASSES, **kw)


@pytest.mark.parametrize("reader", [read_coco, read_voc, read_yolo])
def test_the_three_formats_agree(reader, tmp_path):
    found = reader(tmp_path)
    assert found.classes == CLASSES and not found.notes
    picture = found.pictures[0]
    assert picture.path == tmp_path / "a.jpg" and picture.size == SIZE
    np.testing.assert_allclose(annotations.boxes_of(picture.things), BOXES, atol=1e-5)
    assert [t.label for t in picture.things] == [0, 1]


def test_what_only_some_formats_say(tmp_path):
    found = read_coco(tmp_path)
    assert [t.crowd for t in found.pictures[0].things] == [False, True]
    assert [t.area for t in found.pictures[0].things] == [60.5, 200]
    assert found.pictures[1].things == () and found.pictures[1].size is None, "pictures without objects are kept"
    assert [t.difficult for t in read_voc(tmp_path).pictures[0].things] == [True, False]


def test_masks_of_polygons_and_runs(tmp_path):
    triangle = Thing(0, (0, 0, 8, 8), (((0.0, 0.0), (8.0, 0.0), (0.0, 8.0)),))
    # Centres (x + .5, y + .5) with x + y < 7; those on the line belong to neither side's left.
    expected = np.add.outer(np.arange(8), np.arange(8)) < 7
    found = annotations.as_mask(triangle, (8, 8))
    assert (found ^ expected).sum() <= 8 and (found & ~expected).sum() <= 8 and found[expected].all()
    np.testing.assert_array_equal(annotations.as_mask(Thing(0, (2, 1, 5, 3)), (4, 6)).sum((0, 1)), 6)
    runs = Thing(0, (0, 0, 1, 1), Runs((2, 3), (1, 2, 3)))  # column by column: 0 1 | 1 0 | 0 0
    assert annotations.as_mask(runs, (2, 3)).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_compressed_runs():
    """The string is pycocotools' own of a 40x60 mask: rows 5..29 of columns 10..49, but for 12..13 of 20..21."""
    text = "e<i0?000000000000000000^OC9=GC9=9000000000000000000000000000000000000000000000000000000[<"
    runs = Runs((40, 60), tuple(coco.uncompressed(text, "test")))
    expected = np.zeros((40, 60), bool)
    expected[5:30, 10:50] = True
    expected[12:14, 20:22] = False
    np.testing.assert_array_equal(annotations.as_mask(Thing(0, (0, 0, 1, 1), runs), (40, 60)), expected)


def test_keypoints_are_centres_of_pixels_and_know_their_mirror(tmp_path):
    points = {"keypoints": ["nose", "left_eye", "right_eye"]}
    categories = [{"id": 1, "name": "person", **points}]
    things = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "keypoints": [3, 4, 2, 5, 6, 1, 0, 0, 0]}
    ]
    found = read_coco(tmp_path, categories=categories, annotations=things)
    assert found.points == ("nose", "left_eye", "right_eye") and found.pairs == ((1, 2),)
    assert found.pictures[0].things[0].points == ((3.5, 4.5, 2), (5.5, 6.5, 1), (0, 0, 0))


def test_yolo_polygons_and_points(tmp_path):
    polygon = read_yolo(tmp_path, "1 0.1 0.1 0.3 0.1 0.2 0.5\n").pictures[0].things[0]
    np.testing.assert_allclose(polygon.box, [4, 2, 12, 10], atol=1e-9)
    pose = read_yolo(tmp_path, "0 0.5 0.5 0.5 0.5 0.25 0.5 2 0 0 0\n", points=(2, 3)).pictures[0].things[0]
    assert pose.points == ((10, 10, 2), (0, 0, 0)) and pose.box == (10, 5, 30, 15)


def test_what_reaches_beyond_the_picture_is_clipped_and_said(tmp_path):
    things = [{**COCO["annotations"][0], "bbox": b, "id": k} for k, b in enumerate([[-5, 0, 10, 10], [3, 3, 0, 5]])]
    found = read_coco(tmp_path, annotations=things)
    assert [t.box for t in found.pictures[0].things] == [(0, 0, 5, 10)]
    assert "1 boxes that reach beyond" in found.notes[0] and "without area" in found.notes[1]


def coco_with(**of_annotation):
    return lambda path: read_coco(path, annotations=[{**COCO["annotations"][0], **of_annotation}])


def voc_with(old, new):
    return lambda path: read_voc(path, VOC.replace(old, new))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]>' + VOC
WRONG = {
    "bbox of three": (coco_with(bbox=[1, 2, 3]), "annotation 1: bbox"),
    "bbox of text": (coco_with(bbox=[1, 2, "x", 4]), "not a number of pixels"),
    "negative": (coco_with(bbox=[1, 2, -3, 4]), "-3x4"),
    "image unknown": (coco_with(image_id=8), "image 8"),
    "image no number": (coco_with(image_id=[7]), "image"),
    "category unknown": (coco_with(category_id=3), "category 3"),
    "crowd": (coco_with(iscrowd=2), "iscrowd"),
    "short polygon": (coco_with(segmentation=[[1, 2, 3, 4]]), "three corners"),
    "runs too few": (coco_with(segmentation={"size": [20, 40], "counts": [5]}), "cover 5 of 800"),
    "runs of another size": (coco_with(segmentation={"size": [2, 2], "counts": [4]}), "size"),
    "runs damaged": (coco_with(segmentation={"size": [20, 40], "counts": "e<~"}), "damaged at character 2"),
    "twice": (lambda p: read_coco(p, images=[COCO["images"][0]] * 2), "image 7 occurs twice"),
    "outside": (lambda p: read_coco(p, images=[{"id": 7, "file_name": "../../etc/passwd"}]), "not below"),
    "no list": (lambda p: read_coco(p, categories={}), "'categories'"),
    "nothing": (voc_with("annotation", "nothing"), "not <annotation>"),
    "not XML": (lambda p: read_voc(p, "<annotation>"), "not XML"),
    "entities": (lambda p: read_voc(p, BOMB), "document type"),
    "backwards": (voc_with("<xmax>14", "<xmax>2"), "ends before it begins"),
    "no number": (voc_with("<ymin>3", "<ymin>three"), "ymin"),
    "class out of range": (lambda p: read_yolo(p, "2 .5 .5 .1 .1\n"), "line 1: the class 2 is outside 0..1"),
    "pixels": (lambda p: read_yolo(p, "0 .5 .5 .1 .1\n0 20 10 5 5\n"), "line 2"),
    "five numbers": (lambda p: read_yolo(p, "0 .5 .5 .1 .1 .1\n"), "5 numbers"),
    "words": (lambda p: read_yolo(p, "cat .5 .5 .1 .1\n"), "not numbers"),
    "nan": (lambda p: read_yolo(p, "0 nan .5 .1 .1\n"), "not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_damage_names_file_and_place(case, tmp_path):
    make, says = WRONG[case]
    with pytest.raises(errors.BadRequest) as e:
        make(Path(tmp_path))
    assert says in str(e.value) and str(tmp_path) in str(e.value) and len(str(e.value)) < 600
