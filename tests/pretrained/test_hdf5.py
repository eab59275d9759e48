"""HDF5 files as Keras writes them: arrays in the file itself are read, whatever else they hold is refused."""

import sys

import jax
import numpy as np
import pytest
from reference import template

from recvis_jax import models, network, pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import files, hdf5, keras_vars

RNG = np.random.default_rng(0)
SMALL = RNG.normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py", reason="h5py, which reads HDF5, is not installed")


def test_arrays_by_their_paths(h5py, tmp_path):
    path = tmp_path / "x.weights.h5"
    zeros = np.zeros((300, 300))
    with h5py.File(path, "w") as f:
        f["block1/layers/conv2d/vars/0"] = SMALL
        f.create_dataset("packed", data=zeros, chunks=(100, 300), compression="gzip", shuffle=True, fletcher32=True)
        f["number"] = np.int64(7)
        f.create_group("empty")
        f.attrs["note"] = "attributes are not read"
    found = files.read(str(path)).tensors
    assert set(found) == {"block1/layers/conv2d/vars/0", "packed", "number"} and len(found) == 3
    np.testing.assert_array_equal(found["block1/layers/conv2d/vars/0"], SMALL)
    np.testing.assert_array_equal(found["packed"], zeros)
    assert found["number"] == 7 and found.shape_of("packed") == (300, 300) and "empty" not in found
    with pytest.raises(KeyError):
        found["nothing"]


def outside(h5py, f):
    f["link"] = h5py.ExternalLink("other.h5", "/x")


def soft(h5py, f):
    f["a"], f["link"] = SMALL, h5py.SoftLink("/a")


def circle(h5py, f):
    f["a/x"] = SMALL
    f["a/b"] = f["a"]


def stored_elsewhere(h5py, f):
    f.create_dataset("a", (8,), "u1", external=[("secret.bin", 0, 8)])


def view(h5py, f):
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 4))
    f.create_virtual_dataset("a", layout)


def never_written(h5py, f):
    f.create_dataset("a", (10**6, 10**6), "f4", chunks=(1000, 1000))


def a_bomb(h5py, f):
    f.create_dataset("a", (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")[0, 0] = 1


def text(h5py, f):
    f["a"] = "words"


def structure(h5py, f):
    f["a"] = np.zeros(3, [("x", "f4"), ("y", "i4")])


def no_array(h5py, f):
    f["a"] = np.dtype("f4")


def other_filter(h5py, f):
    f.create_dataset("a", data=SMALL, chunks=(3, 4), compression="lzf")


def nothing(h5py, f):
    pass


@pytest.mark.parametrize(
    "write, message",
    [
        (outside, "link is a link, perhaps to another file"),
        (soft, "link is a link"),
        (circle, "nested too deeply, or in a circle"),
        (stored_elsewhere, "a is stored outside the file"),
        (view, "a is stored outside the file"),
        (never_written, "a claims shape .* but has 0 bytes"),
        (a_bomb, "a claims shape"),
        (text, "not numeric"),
        (structure, "not numeric"),
        (no_array, "a is no array"),
        (other_filter, "in a way that Keras does not use"),
        (nothing, "holds no arrays"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_is_refused(h5py, tmp_path, monkeypatch, write, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(b"12345678")
    with h5py.File("other.h5", "w") as f:
        f["x"] = SMALL
    with h5py.File("x.h5", "w") as f:
        write(h5py, f)
    with pytest.raises(BadRequest, match=message) as e:
        files.read("x.h5")
    assert "\n" not in str(e.value) and "x.h5" in str(e.value)


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8])
def test_damaged_files(h5py, tmp_path, data):
    path = tmp_path / "x.h5"
    path.write_bytes(data)
    with pytest.raises(BadRequest, match=r"x\.h5 is damaged or no HDF5 file"):
        files.read(str(path))


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = tmp_path / "x.h5"
    path.write_bytes(b"")
    with pytest.raises(BadRequest, match=r"needs the package h5py: pip install h5py"):
        hdf5.File(path)


def small_vgg(**kw):
    model = models.create("vgg16", **{"fully_connected": False, "num_classes": 0, "width": 2, **kw})
    shapes = template(model, 32)
    return model, shapes, jax.tree.map(lambda s: RNG.normal(size=s.shape).astype(np.float32), shapes)


def test_names_of_keras(h5py, tmp_path):
    model, shapes, variables = small_vgg()
    theirs = pretrained.export(variables, model, "keras_vars")
    kernel = variables["params"]["stage1_conv1"]["kernel"]
    np.testing.assert_array_equal(theirs["block1/layers/conv2d/vars/0"], kernel[:, :, ::-1])  # blue first
    np.testing.assert_array_equal(theirs["block5/layers/conv2d_2/vars/1"], variables["params"]["stage5_conv3"]["bias"])
    assert theirs["dsn5/vars/0"].shape == (1, 1, 16, 1) and theirs["fuse/vars/0"].shape == (1, 1, 5, 1)
    assert len(theirs) == 26 + 12
    path = tmp_path / "x.weights.h5"
    with h5py.File(path, "w") as f:
        for name, x in theirs.items():
            f[name] = x
    again = trees.flatten(pretrained.load(path, model, shapes, say=lambda line: None))
    for name, x in trees.flatten(variables).items():
        np.testing.assert_array_equal(again[name], x, err_msg=name)


def test_a_head_that_the_file_lacks_is_new_or_refused():
    model, _, variables = small_vgg()
    theirs = pretrained.export(variables, model, "keras_vars")
    model, shapes, ours = small_vgg(num_classes=3)
    with pytest.raises(BadRequest, match="params/head"):
        pretrained.load(theirs, model, shapes, say=lambda line: None)
    found = pretrained.load(theirs, model, ours, new_head=True, say=lambda line: None)["params"]
    np.testing.assert_array_equal(found["head"]["kernel"], ours["params"]["head"]["kernel"])
    np.testing.assert_array_equal(found["stage2_conv1"]["kernel"], variables["params"]["stage2_conv1"]["kernel"])


def test_every_name_of_the_table_is_a_model():
    for name in keras_vars.NAMES:
        assert pretrained.create("keras_vars", name).num_classes == 0


def test_what_has_no_classes_predicts_none():
    with pytest.raises(BadRequest, match="keras_vars/hed predicts no classes: VGG has no head"):
        network.published("keras_vars/hed", "x.h5", of_classes=True)
