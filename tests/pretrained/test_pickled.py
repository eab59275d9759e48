"""Pickles of arrays: numpy's own are read, whatever else they ask for is refused, and nothing is called."""

import os
import pickle

import jax
import numpy as np
import pytest
from pretrained.reference import template

from recvis_jax import models, pretrained, trees
from recvis_jax.errors import BadRequest
from recvis_jax.pretrained import pickled


def written(tmp_path, data, **kw):
    path = tmp_path / "x.pkl"
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, **kw))
    return path


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_in_dicts_and_lists(tmp_path, protocol):
    rng = np.random.default_rng(0)
    same = rng.normal(size=(2, 3)).astype(np.float32)
    value = {
        "conv": [same, np.arange(4)], "more": {"t": (np.asfortranarray(rng.normal(size=(3, 5))), same)},
        "big": same.astype(">f8"), "none": None, "text": "x", "empty": np.zeros((0, 2), np.float16),
    }  # fmt: skip
    found = pickled.read(written(tmp_path, value, protocol=protocol))
    assert set(found) == {"conv/0", "conv/1", "more/t/0", "more/t/1", "big", "empty"}
    for name, want in (("conv/0", same), ("conv/1", value["conv"][1]), ("more/t/0", value["more"]["t"][0]),
                       ("big", value["big"]), ("empty", value["empty"])):  # fmt: skip
        np.testing.assert_array_equal(found[name], want)
        assert found[name].dtype == want.dtype


class Evil:
    def __reduce__(self):
        return os.mkdir, ("called",)


class State:
    def __init__(self):
        self.x = 1


ITSELF: list = []
ITSELF.append(ITSELF)


def nested_key():
    """A dict whose only key is a pair of one pair twice, 200 times over, as a pickle of few bytes."""
    return b"\x80\x03})" + b"q\x00h\x00\x86" * 200 + b"K\x01s."


@pytest.mark.parametrize(
    "value, message",
    [
        ({"a": Evil()}, r"posix mkdir|nt mkdir"),
        ([np.array([Evil()], object)], "arrays of 'O8'"),
        (State(), r"State' in it"),
        ({"a": {1, 2}}, "set' in it|instruction EMPTY_SET"),
        (ITSELF, "too many lists in one another"),
        ({("a", "b"): np.ones(2)}, "keys that are neither text nor whole numbers"),
        (nested_key(), "keys that are neither text nor whole numbers"),  # hashing it would take years
        (
            pickle.dumps([np.ones(9)], protocol=3).replace(b"\x01\x00\x00\x00<", b"\x01\x00\x00\x009"),
            "a byte order '9'",
        ),
        ({"a": 1}, "holds no array"),
        (b"\x80\x03r\xff\xff\xff\x7f.", "damaged"),  # a place of the memo that a list would need 16 GB for
        (b"\x80\x03", "damaged"),
        (b"no pickle", "damaged"),
        (pickle.dumps([np.ones(9)], protocol=3)[:-30], "damaged"),
        (pickle.dumps([np.ones(9)], protocol=3).replace(b"K\x09\x85", b"K\x0a\x85"), "damaged"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, value, **({} if isinstance(value, bytes) else {"protocol": 3}))
    with pytest.raises(BadRequest, match=message):
        pickled.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.full
def test_ndfs_names_lead_there_and_back(tmp_path):
    model = models.create("squeezenet1_1", stem=(4, 3), squeezes=(2,) * 8, num_classes=5, ceil=False)
    shapes = template(model, 64)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    theirs = pretrained.export(variables, model, "ndf")
    np.testing.assert_array_equal(theirs["conv1/0"], variables["params"]["stem"]["kernel"][:, :, ::-1])
    nested: dict = {}
    for name, x in theirs.items():
        nested.setdefault(name[:-2], [None, None])[int(name[-1])] = x
    again = pretrained.load(written(tmp_path, nested, protocol=3), model, shapes, say=lambda line: None)
    for name, x in trees.flatten(again).items():
        np.testing.assert_array_equal(x, trees.flatten(variables)[name], err_msg=name)
