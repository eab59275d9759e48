"""What `predict` prints, against probabilities computed by hand, and what it refuses."""

import json
import os
import pickle
import re
from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import programs
import pytest
import small

from recvis_jax import pretrained
from recvis_jax.data import sources, writing

PRINTED = 0.5e-4 + 1e-6  # percent are printed with two decimals


def predict(program, *flags):
    """({image: [(number, class), ...]}, the lines before)."""
    got = program("predict", *flags)
    assert got.code == 0 and not got.err, got
    found, notes = {}, []
    for line in got.out.splitlines():
        if m := re.fullmatch(r" +(-?[\d.e+-]+)(%?)  (\S.*)", line):
            found[image].append((float(m[1]) / (100 if m[2] else 1), m[3]))
        elif line.endswith(".png"):
            image = line.rpartition("/")[2]
            found[image] = []
        elif not line.startswith("next: "):
            notes.append(line)
    return found, notes


def agree(found, expected, classes, top=5):
    """Holds printed lines against all numbers (k)."""
    order = np.argsort(-expected)[:top]
    assert [name for _, name in found] == [classes[i] for i in order]
    np.testing.assert_allclose([p for p, _ in found], expected[order], atol=PRINTED)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# --- a run of our own ---


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three test digits as files, and their pixels."""
    folder = tmp_path_factory.mktemp("digits")
    images = [e["image"] for e in sources.open_split("digits", "test").read([0, 1, 2])]
    for i, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{i}.png"), image)
    return folder, images


def train(program, folder, **changes):
    flag = programs.write_config(folder / "config.py", small.sections(**changes))
    got = program("train", flag, f"--workdir={folder / 'run'}")
    assert got.code == 0, got.err
    return folder / "run"


@pytest.fixture(scope="module")
def trained(program, tmp_path_factory):
    """A finished run whose best checkpoint is not its last."""
    changes = dict(optim__schedule="step", optim__lr=0.1)
    changes["optim__schedule_args"] = dict(boundaries=(40,), factor=10.0)
    run = train(program, tmp_path_factory.mktemp("trained"), **changes)
    assert programs.steps(run, "best") != programs.steps(run, "last")[-1:]
    return run


def outputs(workdir, which, image):
    """The averaged MLP of `small.py` on one image, from the arrays of its checkpoint alone."""
    a = {k: v.astype(np.float64) for k, v in programs.arrays(workdir, which).items() if k.startswith("['ema']")}
    x, prefix = (image.reshape(-1) / 255 - 0.3053) / 0.3760, "['ema']['params']"
    for i in (1, 2):
        p, s = f"{prefix}['dense{i}']", f"['ema']['model_state']['batch_stats']['norm{i}']"
        x = x @ a[f"{p}['kernel']"] + a[f"{p}['bias']"]
        x = (x - a[f"{s}['mean']"]) / np.sqrt(a[f"{s}['var']"] + 1e-5)
        x = np.maximum(x * a[f"{prefix}['norm{i}']['scale']"] + a[f"{prefix}['norm{i}']['bias']"], 0)
    return x @ a[f"{prefix}['head']['kernel']"] + a[f"{prefix}['head']['bias']"]


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run(which, program, trained, digits):
    folder, images = digits
    weights = f"--weights={trained}" + ("" if which == "best" else "@last")
    found, notes = predict(program, weights, *(folder / f"{i}.png" for i in range(3)))
    assert list(found) == ["0.png", "1.png", "2.png"]
    for image, lines in zip(images, found.values(), strict=True):
        agree(lines, softmax(outputs(trained, which, image)), "0123456789")
    (step,) = programs.steps(trained, which)[-1:]
    assert notes == [f"{trained}: mlp, checkpoint {which} of step {step}"]


@pytest.mark.full
def test_top_and_names(program, trained, digits, tmp_path):
    folder, images = digits
    names = ["nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine (9)"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    flags = (f"--weights={trained}", f"--classes={tmp_path}/names.txt", folder / "0.png")
    p = softmax(outputs(trained, "best", images[0]))
    agree(predict(program, *flags, "--top=2")[0]["0.png"], p, names, 2)
    found = predict(program, *flags, "--top=50")[0]["0.png"]
    agree(found, p, names, 10)
    assert sum(x for x, _ in found) == pytest.approx(1, abs=10 * PRINTED)
    found = predict(program, f"--weights={trained}", "--classes=digits", folder / "0.png")[0]["0.png"]
    agree(found, p, "0123456789")
    (tmp_path / "names.txt").write_text("\n".join(names[:9]))
    got = program("predict", *flags)
    assert got.code == 2 and "there are 9 names of classes, but the model has 10 outputs" in got.err


@pytest.mark.full
def test_a_folder_and_what_cannot_be_read(program, trained, digits, tmp_path):
    """All images in order of their names, also in subfolders; a bad one is named, and the rest goes on."""
    _, images = digits
    for name, image in (("b/2.png", images[2]), ("a 0.png", images[0]), ("b/c/1.png", images[1])):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(tmp_path / name), image)
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / name).write_text("x")
    found, _ = predict(program, f"--weights={trained}", tmp_path)
    assert list(found) == ["a 0.png", "2.png", "1.png"]
    for image, lines in zip((images[0], images[2], images[1]), found.values(), strict=True):
        agree(lines, softmax(outputs(trained, "best", image)), "0123456789")

    (tmp_path / "b" / "\x1b[2Jbad\n.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    os.mkfifo(tmp_path / "b" / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    got = program("predict", f"--weights={trained}", tmp_path / "b/2.png", tmp_path, tmp_path / "link.png")
    assert got.code == 1 and got.err == "error: 3 of 6 images could not be predicted; their lines say why.\n"
    blocks = re.split(r"\n(?=/)", got.out)[1:]
    named = {block.split("\n")[0].rpartition("/")[2]: block.split("\n")[1] for block in blocks}
    assert [n for n in named] == ["2.png", "a 0.png", "\\x1b[2Jbad\\n.png", "1.png", "pipe.png", "link.png"]
    assert named["\\x1b[2Jbad\\n.png"].startswith("  cannot be read: PostScript, not an image in a")
    assert "a named pipe, not a regular file" in named["pipe.png"] and "No such file" in named["link.png"]
    assert all("%" in named[n] for n in ("2.png", "a 0.png", "1.png"))

    (tmp_path / "empty").mkdir()
    for path, pattern in (("empty", r"empty holds no images \(\.apng, "), ("link.png", "cannot be read: No such file")):
        got = program("predict", f"--weights={trained}", tmp_path / path)
        assert got.code == 2 and re.search(pattern, got.err) and got.err.count("\n") == 1
    got = program("predict", f"--weights={trained}", "/proc")
    assert got.code == 2 and "/proc belongs to the kernel (proc), not a folder of images" in got.err


def test_odd_images_and_names(program, trained, digits, tmp_path):
    """One pixel, a line of pixels; names of classes that would move the cursor."""
    names = ["\x1b[2J", "a\u202eb", *"23456789"]
    (tmp_path / "names.txt").write_text("\r\n".join(names) + "\n")
    for name, shape in (("dot", (1, 1)), ("row", (1, 900)), ("column", (900, 1))):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), np.full(shape, 90, np.uint8))
    flags = (f"--weights={trained}", f"--classes={tmp_path}/names.txt", "--top=10")
    found, _ = predict(program, *flags, tmp_path)
    assert list(found) == ["column.png", "dot.png", "row.png"]
    for lines in found.values():
        assert {name for _, name in lines} == {"\\x1b[2J", "a\\u202eb", *"23456789"}


def test_photographs_stand_upright(program, trained, digits, tmp_path):
    """A phone's portrait is predicted as it is seen: as the same pixels stored upright."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = digits[1][0][..., 0]
    PIL.Image.fromarray(np.rot90(image)).save(tmp_path / "1.png", exif=exif)  # turned clockwise when it is shown
    found, _ = predict(program, f"--weights={trained}", tmp_path / "1.png")
    agree(found["1.png"], softmax(outputs(trained, "best", image)), "0123456789")


def test_images_of_another_kind_are_made_to_fit(program, trained, digits, tmp_path):
    """Colour becomes grey, another size that of the training images, without a word: the result is what counts."""
    _, images = digits
    colour = cv2.cvtColor(images[0], cv2.COLOR_GRAY2BGR)
    large = np.kron(images[0][..., 0], np.ones((4, 4), np.uint8))
    for name, image in (("colour", colour), ("large", large), ("deep", images[0].astype(np.uint16) * 257)):
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    found, _ = predict(program, f"--weights={trained}", *sorted(tmp_path.glob("*.png")))
    assert set(found) == {"colour.png", "large.png", "deep.png"}
    p = softmax(outputs(trained, "best", images[0]))
    for lines in found.values():
        agree(lines, p, "0123456789")


@pytest.mark.full
def test_outputs_that_are_no_softmax(program, digits, tmp_path):
    folder, images = digits
    for loss, scale in (("sigmoid", lambda x: 1 / (1 + np.exp(-x))), ("l2", lambda x: x)):
        (tmp_path / loss).mkdir()
        run = train(program, tmp_path / loss, steps=20, task__loss=loss)
        found, notes = predict(program, f"--weights={run}", folder / "0.png")
        expected = scale(outputs(run, "best", images[0]))
        order = np.argsort(-expected)[:5]
        assert [name for _, name in found["0.png"]] == [str(i) for i in order]
        np.testing.assert_allclose([v for v, _ in found["0.png"]], expected[order], atol=PRINTED, rtol=1e-3)
        assert len(notes) == 2 and ("do not sum to 1" in notes[1] if loss == "sigmoid" else "no prob" in notes[1])


@pytest.mark.full
def test_a_number(program, tmp_path):
    """Regression prints what it predicts, here how bright an image is."""
    grey = np.random.default_rng(0).integers(0, 256, (64, 2, 2), np.uint8)
    pictures = [np.kron(g, np.ones((4, 4), np.uint8)) for g in grey]

    def read(keys):
        for key in keys:
            yield {
                "image": cv2.imencode(".png", pictures[key])[1].tobytes(),
                "label": np.float32(grey[key].mean() / 255),
            }

    def features(tfds):
        return {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.Scalar(np.float32)}

    with writing.staging(tmp_path, "grey") as stage:
        made = writing.write(stage, "grey", "1.0.0", {"train": writing.Split(range(64), read)}, features, "")
        writing.move(made, tmp_path / "grey/1.0.0", stage, {})
    data = dict(name="grey", data_dir=str(tmp_path), train="train[:48]", val="train[48:]", test=None)
    run = train(program, tmp_path, data=data, task={}, steps=20, model__norm="batch")
    assert cv2.imwrite(str(tmp_path / "x.png"), pictures[0])
    found, notes = predict(program, f"--weights={run}", tmp_path / "x.png")
    ((value, name),) = found["x.png"]
    a = pictures[0][..., None].astype(np.float64)
    # `outputs` normalises as digits are; these have no statistics, so that x / 255 has to come out of it.
    expected = outputs(run, "best", (a / 255 * 0.3760 + 0.3053) * 255)
    assert name == "output 0" and value == pytest.approx(float(expected[0]), rel=1e-3)
    assert "they are no probabilities" in notes[1]


@pytest.mark.full
def test_an_autoencoder_has_no_classes(program, digits, tmp_path):
    model = dict(name="mae_b16", patch_size=4, width=8, depth=1, heads=1)
    model |= dict(decoder_width=8, decoder_depth=1, decoder_heads=1)
    changes = dict(model=model, task=dict(name="mae"), data__augment="flip", steps=2)
    run = train(program, tmp_path, **changes)
    got = program("predict", f"--weights={run}", digits[0] / "0.png")
    assert got.code == 2 and "was pretrained without labels: fine-tune it or probe it first" in got.err
    got = program("predict", "--model=mae_b16", f"--weights={run}", digits[0] / "0.png")
    assert got.code == 2 and re.search("--model is not needed: the run .* says by itself", got.err)


# --- published weights ---


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file with torchvision's names of random variables, the model and its variables, and a picture of 300x260."""
    folder = tmp_path_factory.mktemp("resnet")
    model = pretrained.create("torchvision", "resnet18")
    spec = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))
    rng = np.random.default_rng(0)

    def draw(path, s):
        x = rng.standard_normal(s.shape, np.float32)
        if path[-1].key in ("scale", "var"):
            return 1 + 0.1 * np.abs(x)
        return x * np.sqrt(2 / np.prod(s.shape[:-1])) if path[-1].key == "kernel" else 0.1 * x

    variables = jax.tree_util.tree_map_with_path(draw, spec)
    pretrained.export(variables, model, "torchvision", folder / "x.safetensors")
    picture = np.kron(rng.integers(0, 256, (13, 15, 3), np.uint8), np.ones((20, 20, 1), np.uint8))[:256]
    assert cv2.imwrite(str(folder / "x.png"), picture[..., ::-1])
    return folder, partial(model.apply, variables, train=False), picture


@pytest.mark.full
def test_published_weights(program, resnet, tmp_path):
    """The preprocessing by hand: the shorter side has 256 pixels already, and 224 x 224 are cut from the centre."""
    folder, apply, picture = resnet
    assert picture.shape == (256, 300, 3)
    x = picture[16:240, 38:262] / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits, _ = jax.jit(apply)(jnp.asarray(x[None], jnp.float32))
    names = [f"name {i}" for i in range(1000)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    flags = (f"--weights={folder}/x.safetensors", folder / "x.png")
    found, notes = predict(program, "--model=torchvision/resnet18", f"--classes={tmp_path}/names.txt", *flags)
    agree(found["x.png"], softmax(np.asarray(logits, np.float64)[0]), names)
    assert notes == ["preprocessing: resize_crop(224, resize=256, method='bilinear'), statistics of imagenet"]
    ours, _ = predict(program, "--model=resnet18", *flags)  # whose names the file has is found out
    assert ours["x.png"] == [(p, name.replace("name", "class")) for p, name in found["x.png"]]


def test_a_grey_picture_is_one_of_three_equal_channels(program, resnet, tmp_path):
    folder, _, picture = resnet
    assert cv2.imwrite(str(tmp_path / "one.png"), picture[..., 0])
    assert cv2.imwrite(str(tmp_path / "three.png"), picture[..., :1].repeat(3, 2))
    flags = ("--model=torchvision/resnet18", f"--weights={folder}/x.safetensors", "--image_size=64")
    found, notes = predict(program, *flags, "--statistics=inception", tmp_path / "one.png", tmp_path / "three.png")
    assert found["one.png"] == found["three.png"] and len(found["one.png"]) == 5
    assert notes == ["preprocessing: resize_crop(64, resize=73, method='bilinear'), statistics of inception"]


@pytest.mark.full
def test_another_number_of_classes(program, resnet, tmp_path):
    folder, _, _ = resnet
    model = pretrained.create("torchvision", "resnet18", num_classes=3)
    spec = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)
    zeros["params"]["head"]["bias"] = np.log([0.2, 0.7, 0.1]).astype(np.float32)
    pretrained.export(zeros, model, "torchvision", tmp_path / "x.npz")
    flags = ("--model=torchvision/resnet18", f"--weights={tmp_path}/x.npz", "--image_size=32", folder / "x.png")
    found, _ = predict(program, *flags, "--num_classes=3")
    assert found["x.png"] == [(0.7, "class 1"), (0.2, "class 0"), (0.1, "class 2")]
    got = program("predict", *flags)
    assert got.code == 2 and re.search(r"fc\.weight -> params/head/kernel", got.err) and got.err.count("\n") == 1


# --- what is refused ---


REFUSED = {
    "nothing": ([], "name the images: python -m recvis_jax.predict"),
    "no weights": (["--model=resnet18", "X/x.png"], "--weights is missing: a file, hf://owner/repo or the folder"),
    "no model": (["W", "X/x.png"], r"--model is missing, as resnet50 or torchvision/resnet50: .*is no folder of a run"),
    "no image": (["M", "W", "X/x.png", "X/y.png", "X/z.png"], r"no such file: .*/y\.png, .*/z\.png\.$"),
    "image": (["M", "W", "X/text.png"], r"text\.png cannot be read: not an image in a supported format"),
    "empty image": (["M", "W", "X/empty.png"], r"empty\.png cannot be read: zero bytes"),
    "model": (["--model=resnet19", "W", "X/x.png"], r"unknown model 'resnet19'\. Did you mean 'resnet1"),
    "library": (
        ["--model=tochvision/resnet18", "W", "X/x.png"],
        r"unknown library 'tochvision'\. Did you mean 'torchv",
    ),
    "theirs": (
        ["--model=torchvision/resnet19", "W", "X/x.png"],
        r"unknown torchvision model 'resnet19'\. Did you mean",
    ),
    "another model": (
        ["--model=torchvision/alexnet", "W", "X/x.png"],
        r"x\.safetensors holds none of the names that torchvision",
    ),
    "an autoencoder": (["--model=mae_b16", "W", "X/x.png"], "mae_b16 predicts no classes: MAE has no head"),
    "no file": (["M", "--weights=X/y.safetensors", "X/x.png"], r"there is no file .*/y\.safetensors"),
    "folder": (["M", "--weights=X", "X/x.png"], "a folder without checkpoints/"),
    "kind": (["M", "--weights=X/text.png", "X/x.png"], r"text\.png has an unknown file type; \.safetensors, \.npz"),
    "truncated": (["M", "--weights=X/cut.safetensors", "X/x.png"], r"cut\.safetensors is damaged or truncated"),
    "pickle": (["M", "--weights=X/evil.pth", "X/x.png"], r"evil\.pth is (a pickle|not a file of weights only)"),
    "pickle in an npz": (["M", "--weights=X/evil.npz", "X/x.png"], "pickled objects, which could execute code"),
    "names": (["M", "W", "--classes=X/names.txt", "X/x.png"], "2 names of classes, but the model has 1000 outputs"),
    "names of no data set": (["M", "W", "--classes=digit", "X/x.png"], "no data set 'digit'"),
    "statistics": (["M", "W", "--statistics=imagnet", "X/x.png"], r"'imagnet'.*Did you mean 'imagenet'"),
    "top": (["M", "W", "--top=0", "X/x.png"], "--top=0"),
    "size": (["M", "W", "--image_size=0", "X/x.png"], "--image_size=0"),
    "broken run": (["--weights=X/run", "X/x.png"], r"run/config\.json is not valid JSON"),
    "unfinished run": (["--weights=X/begun", "X/x.png"], r"no checkpoint '(best|last)' in .*begun"),
    "checkpoint": (["--weights=X/begun@bset", "X/x.png"], r"checkpoint 'bset' is neither 'best', 'last' nor a step"),
}


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")  # leaves a file behind where it is executed


@pytest.fixture(scope="module")
def odd(resnet):
    """The files that are no images, no weights and no runs."""
    folder = resnet[0]
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    (folder / "names.txt").write_text("cat\ndog\n")
    (folder / "cut.safetensors").write_bytes((folder / "x.safetensors").read_bytes()[:-100])
    (folder / "evil.pth").write_bytes(pickle.dumps({"fc.weight": Evil(folder / "executed")}))
    np.savez(folder / "evil.npz", x=np.array([Evil(folder / "executed")], dtype=object))
    for name, text in (("run", "{"), ("begun", json.dumps(small.sections()))):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, program, odd):
    flags, pattern = REFUSED[what]
    short = {"M": "--model=torchvision/resnet18", "W": f"--weights={odd}/x.safetensors"}
    got = program("predict", *(short.get(f, re.sub(r"(^|=)X(?=$|/)", rf"\g<1>{odd}", f)) for f in flags))
    assert got.code == 2, got
    assert len(got.err.splitlines()) == 1 and re.search(pattern, got.err), got.err
    assert not (odd / "executed").exists(), "nothing in a file is executed"
