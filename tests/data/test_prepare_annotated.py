"""Folders of annotated pictures in three formats, brought in, read, batched, mirrored and cut; drawn by `drawn`."""

import json
import shutil

import drawn
import numpy as np
import pytest

import recvis_jax as rv
from recvis_jax import errors
from recvis_jax.data import annotated_folder, builders, coco, fields, sources


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """kind -> (source folder, data_dir, lines that were said)."""
    out = {}
    for kind, make in drawn.MAKERS.items():
        base = tmp_path_factory.mktemp(kind)
        lines = []
        builders.prepare(kind, base / "data", make(base / f"my_{kind}"), say=lines.append)
        out[kind] = (base / f"my_{kind}", base / "data", lines)
    return out


KINDS = pytest.mark.parametrize("kind", drawn.MAKERS)
FIRST = {"disc": 0, "bar": 1, "cross": 2}


def expected(kind, name):
    """Class and box of the objects of a picture, by construction; VOC's classes are in the order of their names."""
    order = sorted(drawn.CLASSES) if kind == "voc" else list(drawn.CLASSES)
    made = drawn.drawing(int(name[1:3]))
    return made.image, [(order.index(o.name), o.box) for o in made.objects]


@KINDS
def test_every_number_is_the_one_that_was_drawn(prepared, kind):
    _, data_dir, lines = prepared[kind]
    found = builders.summary(data_dir / f"my_{kind}" / "1.0.0")
    assert found.splits == {"train": 8, "validation": 2, "test": 2} and set(found.class_names) == set(drawn.CLASSES)
    assert any(line == "train: 12 objects in 8 pictures, 1 without objects, at most 3 in one" for line in lines), lines
    seen = 0
    for split, numbers in drawn.SPLITS.items():
        source = sources.open_split(f"my_{kind}", split, data_dir=str(data_dir))
        examples = {tuple(e["image"][-1, -1]): e for e in source.read(range(source.length))}
        for number in numbers:
            image, objects = expected(kind, f"p{number:02d}.png")
            e = examples[tuple(image[-1, -1])]  # the background says which picture it is
            np.testing.assert_array_equal(e["image"], image)
            np.testing.assert_allclose(e["boxes"], np.reshape([b for _, b in objects], (-1, 4)), atol=1e-4)
            assert e["labels"].tolist() == [k for k, _ in objects]
            assert e["size"].tolist() == list(image.shape[:2])
            assert e["frame"].tolist() == [0, 0, image.shape[1], image.shape[0]]
            areas = [(x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in objects]
            np.testing.assert_allclose(e["area"], areas, rtol=1e-5)
            bars = [source.class_names[k] == "bar" for k, _ in objects]
            assert e["difficult"].tolist() == (bars if kind == "voc" else [False] * len(bars))
            assert not e["crowd"].any()
            if kind == "coco":
                assert e["image_id"] == 100 + number
            if kind != "voc":
                for mask, (_, (x0, y0, x1, y1)) in zip(e["masks"], objects, strict=True):
                    whole = np.zeros(image.shape[:2], bool)
                    whole[y0:y1, x0:x1] = True
                    np.testing.assert_array_equal(mask, whole)
            else:
                assert "masks" not in e
            seen += 1
    assert seen == 12


@KINDS
def test_batches_are_mirrored_and_cut_together(prepared, kind):
    _, data_dir, _ = prepared[kind]
    made = rv.data.open(
        f"my_{kind}", data_dir=str(data_dir), val="validation",
        transform="flip(1)|resize_pad(64)", eval_transform="resize_pad(64)",
    )  # fmt: skip
    assert made.image_shape == (64, 64, 3) and made.info.num_classes == 3
    batches = list(made.batches(8, steps=1))
    (batch,) = batches
    assert batch["image"].shape == (8, 64, 64, 3) and batch["boxes"].shape == (8, 3, 4)
    assert set(batch) >= {"boxes", "boxes_mask", "labels", "image_id", "size", "frame", "mask", "slot"}
    assert "labels_mask" not in batch
    assert int(batch["boxes_mask"].sum()) == 12
    for i in range(8):
        h, w = (int(n) for n in batch["size"][i])
        scale = 64 / max(h, w)
        image = np.asarray(batch["image"][i])
        background = round(float(image[0, 0, 0]) * 255)
        number = (background - 30) // 3 if background <= 90 else None
        objects = expected(kind, f"p{number:02d}.png")[1]
        mirrored = [[(w - x1) * scale, y0 * scale, (w - x0) * scale, y1 * scale] for _, (x0, y0, x1, y1) in objects]
        n = len(objects)
        np.testing.assert_allclose(np.asarray(batch["boxes"])[i, :n], np.reshape(mirrored, (-1, 4)), atol=0.6)
        assert np.asarray(batch["boxes_mask"])[i].tolist() == [True] * n + [False] * (3 - n)
        assert np.asarray(batch["labels"])[i].tolist() == [k for k, _ in objects] + [-1] * (3 - n)


def test_a_folder_is_opened_by_its_path_and_its_format_found(prepared, tmp_path):
    for kind, (folder, _, _) in prepared.items():
        assert annotated_folder.kind_of(folder) == kind
        made = rv.data.open(str(folder), data_dir=str(tmp_path), eval_transform="resize_pad(32)")
        assert (made.train.length, made.val.length, made.test.length) == (8, 2, 2)
        assert [f.name for f in made.info.fields][:3] == ["image", "boxes", "labels"]
    (tmp_path / "plain" / "cat").mkdir(parents=True)
    assert annotated_folder.kind_of(tmp_path / "plain") is None


def test_a_data_set_that_is_there_is_compared(prepared):
    folder, data_dir, _ = prepared["voc"]
    lines = []
    builders.prepare("voc", data_dir, folder, say=lines.append)
    assert "already prepared" in lines[-1]
    xml = folder / "Annotations" / "p00.xml"
    text = xml.read_text()
    try:
        xml.write_text(text.replace("<xmax>", "<xmax> "))
        with pytest.raises(errors.BadRequest, match="holds another data set of the same name, 12 examples"):
            builders.prepare("voc", data_dir, folder, say=lines.append)
    finally:
        xml.write_text(text)


def test_what_is_asked_for_is_what_is_read(prepared):
    _, data_dir, _ = prepared["coco"]
    kw = dict(data_dir=str(data_dir))
    source = sources.open_split("my_coco", "train", fields=("image", "masks"), **kw)
    assert [f.name for f in source.fields] == ["image", "boxes", "masks"], "rows of boxes come with them"
    assert set(source.read([0])[0]) == {"image", "boxes", "masks"}
    with pytest.raises(errors.BadRequest, match=r"has no field 'mask'\. Did you mean 'masks'\? It has: image, boxes"):
        sources.open_split("my_coco", "train", fields=("mask",), **kw)
    several = sources.open_split("my_coco", "train", label_key="objects/label", **kw)
    assert several.multi_label and several.read([0])[0]["label"].shape == (3,), "as several classes an image"


def test_a_maximum_keeps_the_largest_and_says_what_goes(prepared):
    _, data_dir, _ = prepared["coco"]
    whole = sources.open_split("my_coco", "train", data_dir=str(data_dir))
    source = sources.open_split("my_coco", "train[:100%]", data_dir=str(data_dir), most_objects=1)
    assert source.notes == (
        "note: train has 4 pictures with more than 1 objects (data.most_objects); "
        "5 objects, crowds and small ones, are dropped",
    )
    for all_of, some in zip(whole.read(range(8)), source.read(range(8)), strict=True):
        areas = (all_of["boxes"][:, 2:] - all_of["boxes"][:, :2]).prod(1)
        assert len(some["boxes"]) == min(1, len(areas)) == len(some["labels"]) == len(some["masks"])
        if len(areas):
            np.testing.assert_array_equal(some["boxes"][0], all_of["boxes"][areas.argmax()])
    assert fields.stack(source.read(range(8)), source.fields[1:3])["boxes"].shape == (8, 1, 4)


def test_points_and_their_mirror(tmp_path):
    made = rv.data.open(str(drawn.coco(tmp_path / "posed", points=True)), data_dir=str(tmp_path / "data"))
    points = next(f for f in made.info.fields if f.name == "points")
    assert points.pairs == ((0, 1),) and points.shape == (None, 2, 3)
    read = made.train.read(range(8))
    assert {e["points"].shape[1:] for e in read} == {(2, 3)}, "also where there are no objects"
    e = next(e for e in read if len(e["boxes"]))
    x0, y0, x1, _ = e["boxes"][0]
    np.testing.assert_allclose(e["points"][0], [[x0 + 0.5, y0 + 0.5, 2], [x1 - 0.5, y0 + 0.5, 1]])


def test_stock_tfds_reads_it(prepared):
    import tensorflow_datasets as tfds

    _, data_dir, _ = prepared["coco"]
    kwargs = {"file_format": "array_record"}
    stock = tfds.data_source("my_coco", data_dir=str(data_dir), builder_kwargs=kwargs, download=False)["train"]
    for e in stock:
        h, w = e["image"].shape[:2]
        boxes = np.reshape(e["objects"]["bbox"], (-1, 4)) * [h, w, h, w]
        np.testing.assert_allclose(boxes[:, [1, 0, 3, 2]], np.reshape(e["objects"]["box"], (-1, 4)), atol=1e-4)
        assert e["id"].decode().startswith("train/p")


def test_runs_are_written_as_pycocotools_writes_them():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 10:50] = True
    mask[12:14, 20:22] = False
    text = "e<i0?000000000000000000^OC9=GC9=9000000000000000000000000000000000000000000000000000000[<"
    assert coco.compressed(mask) == text
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (3, 5), (40, 30)):
        for share in (0.0, 0.3, 1.0):
            mask = rng.random(shape) < share
            counts = coco.uncompressed(coco.compressed(mask), "test")
            assert sum(counts) == mask.size
            flat = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
            np.testing.assert_array_equal(flat.reshape(shape[::-1]).T, mask)


# What is wrong with a folder, and how it is said.


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def train_json(folder):
    return folder / "annotations" / "instances_train.json"


def of_another_size(content):
    content["images"][0]["height"] += 1


def mask_of_another_size(content):
    for image in content["images"]:
        del image["height"], image["width"]
    content["annotations"][0]["segmentation"] = {"size": [2, 3], "counts": [1, 2, 3]}


def renamed(content):
    content["categories"][0]["name"] = "ring"


BAD = {
    "missing picture": (lambda f: (f / "train" / "p00.png").unlink(), r"p00.png.*is missing; searched below"),
    "missing second picture": (
        lambda f: (f / "train" / "p03.png").unlink(), r"1 of 12 pictures cannot .*p03\.png, image 103 \(No such",
    ),
    "size": (lambda f: edit(train_json(f), of_another_size), r"p00\.png, image 100 \(it has 60x96 .* 61x96"),
    "mask": (
        lambda f: edit(train_json(f), mask_of_another_size), r"p00\.png, image 100 \(a mask of \(2, 3\) in a picture of"
    ),
    "names": (lambda f: edit(train_json(f), renamed), "class 3 is 'ring' in one split and 'disc' in another"),
    "no annotations": (lambda f: shutil.rmtree(f / "annotations"), "holds no JSON files, neither in annotations/"),
    "twice": (
        lambda f: shutil.copy(f / "train" / "p00.png", f / "test" / "p10.png")
        and edit(f / "annotations" / "instances_test.json", lambda c: c["images"][0].update(height=60, width=96)),
        r"1 picture is in more than one split \(such as test/test/p10\.png = train/train/p00\.png",
    ),
    "two files": (
        lambda f: shutil.copy(train_json(f), f / "annotations" / "instances_train2.json"), "any of these may be meant",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(name, tmp_path):
    spoil, message = BAD[name]
    spoil(drawn.coco(tmp_path / "set"))
    with pytest.raises(errors.BadRequest, match=message) as caught:
        builders.prepare("coco", tmp_path / "data", tmp_path / "set", say=lambda line: None)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "data").glob("*")), "nothing is left behind"


def test_pictures_that_cannot_be_taken_may_be_skipped(tmp_path):
    folder = drawn.coco(tmp_path / "set")
    (folder / "train" / "p03.png").write_bytes(b"no picture")
    lines = []
    made = builders.prepare("coco", tmp_path / "data", folder, on_error="skip", say=lines.append)
    assert builders.summary(made).splits["train"] == 7
    assert any("p03.png, image 103 (" in line and line.startswith("skipped") for line in lines)


def test_what_is_mended_is_counted(tmp_path):
    def spoil(content):
        things = content["annotations"]
        things[0]["bbox"] = [-5, 2, 20, 20]  # reaches out
        things[1]["bbox"][2] = 0  # no area
        things[2]["bbox"] = [500, 2, 20, 20]  # outside altogether
        del things[3]["segmentation"]

    folder = drawn.coco(tmp_path / "set")
    edit(train_json(folder), spoil)
    lines = []
    builders.prepare("coco", tmp_path / "data", folder, say=lines.append)
    text = "\n".join(lines)
    assert "2 boxes that reach beyond their picture were clipped" in text and "annotation" in text
    assert "2 boxes without area were left out" in text
    assert "1 objects have no mask, and are assumed to fill their box, such as" in text
    assert "train: 10 objects in 8 pictures" in text


def test_many_layouts_of_the_same(tmp_path):
    """As Roboflow exports them: a folder a split, annotations beside the pictures."""
    flat = drawn.coco(tmp_path / "a")
    for split in ("train", "val", "test"):
        shutil.move(flat / "annotations" / f"instances_{split}.json", flat / split / "_annotations.coco.json")
    assert {s: len(p) for s, p in annotated_folder.scan(flat, "coco").splits.items()} == {
        "train": 8, "validation": 2, "test": 2,
    }  # fmt: skip
    year = tmp_path / "b" / "VOCdevkit" / "VOC2012"
    drawn.voc(year)
    (year / "ImageSets" / "Main" / "test.txt").write_text("p90\np91\n")  # published without annotations
    found = annotated_folder.scan(tmp_path / "b", "voc")
    assert {s: len(p) for s, p in found.splits.items()} == {"train": 8, "validation": 2}
    assert "left out test.txt: none of its pictures are annotated" in found.notes
    beside = tmp_path / "c"
    drawn.voc(beside)
    for path in [*(beside / "Annotations").iterdir(), *(beside / "JPEGImages").iterdir()]:
        (beside / "train").mkdir(exist_ok=True)
        shutil.move(path, beside / "train" / path.name)
    shutil.rmtree(beside / "Annotations")
    assert len(annotated_folder.scan(beside, "voc").splits["train"]) == 12
    yolo = drawn.yolo(tmp_path / "d")
    for split in ("train", "val", "test"):
        for what in ("images", "labels"):
            (yolo / split).mkdir(exist_ok=True)
            shutil.move(yolo / what / split, yolo / split / what)
    text = (yolo / "data.yaml").read_text()
    for split in ("train", "val", "test"):
        text = text.replace(f"images/{split}", f"../{split}/images")
    (yolo / "data.yaml").write_text(text)
    found = annotated_folder.scan(yolo, "yolo")
    assert found.classes == drawn.CLASSES and found.ids == (0, 2, 5) and len(found.splits["train"]) == 8
    assert sum(len(p.things) for p in found.splits["train"]) == 12


def yaml_with(old, new):
    return lambda f: (f / "data.yaml").write_text((f / "data.yaml").read_text().replace(old, new))


YOLO_BAD = {
    "no names": (yaml_with("names:", "nombres:"), "names is not a list of class names"),
    "not YAML": (lambda f: (f / "data.yaml").write_text("a: [1, 2"), "is not YAML"),
    "code": (lambda f: (f / "data.yaml").write_text("!!python/object/apply:os.system ['true']"), "is not YAML"),
    "outside": (yaml_with("images/train", "../../nowhere"), "train names '../../nowhere', which is not below"),
    "a class without a name": (
        lambda f: (f / "labels/train/p00.txt").write_text("4 0.5 0.5 0.1 0.1\n"), "of a class without a name",
    ),
    "no class": (lambda f: (f / "labels/train/p00.txt").write_text("9 0.5 0.5 0.1 0.1\n"), "line 1: the class 9"),
}  # fmt: skip


@pytest.mark.parametrize("name", YOLO_BAD)
def test_what_is_wrong_with_yolo(name, tmp_path):
    spoil, message = YOLO_BAD[name]
    spoil(drawn.yolo(tmp_path / "set"))
    with pytest.raises(errors.BadRequest, match=message):
        annotated_folder.scan(tmp_path / "set", "yolo")
