"""Declared fields: stacking, padding, and what is refused."""

import numpy as np
import pytest

from recvis_jax import errors
from recvis_jax.data import fields
from recvis_jax.data.fields import Field

IMAGE = Field("image", "image", (4, 4, 1), "uint8")
BOXES = Field("boxes", "boxes", (None, 4), "float32", most=3)
WORDS = Field("words", "tokens", (None,), "int32", most=4, padding=-1)


def example(boxes, words):
    return {"image": np.zeros((4, 4, 1), np.uint8), "boxes": boxes, "words": words, "unknown": object()}


def test_what_varies_is_padded_and_masked():
    batch = fields.stack([example([[0, 0, 1, 2]], [5, 6]), example([], [7, 8, 9, 10])], [IMAGE, BOXES, WORDS])
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "image": ((2, 4, 4, 1), "uint8"),
        "boxes": ((2, 3, 4), "float32"),
        "boxes_mask": ((2, 3), "bool"),
        "words": ((2, 4), "int32"),
        "words_mask": ((2, 4), "bool"),
    }
    assert batch["boxes_mask"].tolist() == [[True, False, False], [False] * 3]
    assert batch["boxes"].sum() == 3
    assert batch["words"].tolist() == [[5, 6, -1, -1], [7, 8, 9, 10]]


WRONG = {
    "missing": (lambda e: e.pop("words"), "no field 'words'"),
    "too many": (lambda e: e.update(words=[1, 2, 3, 4, 5]), "5 words, more than the declared maximum of 4"),
    "rank": (lambda e: e.update(boxes=[0, 0, 1, 1]), r"shape \(4,\), but \(None, 4\)"),
    "size": (lambda e: e.update(boxes=[[0, 0, 1]]), r"\(1, 3\)"),
    "not finite": (lambda e: e.update(boxes=[[0, 0, 1, np.nan]]), "not finite"),
    "fraction": (lambda e: e.update(words=[1.5]), "int32 cannot"),
    "overflow": (lambda e: e.update(words=[2**40]), "int32 cannot"),
    "image": (lambda e: e.update(image=np.zeros((5, 4, 1), np.uint8)), r"\(5, 4, 1\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_examples_that_do_not_fit_are_refused(case):
    change, says = WRONG[case]
    bad = example([], [])
    change(bad)
    with pytest.raises(errors.BadRequest, match=says):
        fields.stack([example([], [1]), bad], [IMAGE, BOXES, WORDS], "my data")


def test_images_of_several_sizes_need_a_transform():
    image = Field("image", "image", (None, None, 1), "uint8")
    with pytest.raises(errors.BadRequest, match=r"data\.transform"):
        fields.stack([{"image": np.zeros(s, np.uint8)} for s in ((4, 4, 1), (4, 5, 1))], [image])


@pytest.mark.parametrize(
    "declared, says",
    [
        ([IMAGE, IMAGE], "twice"),
        ([Field("mask", "map", (4, 4), "uint8")], "batches reserve"),
        ([BOXES, Field("boxes_mask", "number", (), "float32")], "twice"),
        ([Field("x", "picture", (), "uint8")], "unknown kind"),
        ([Field("x", "boxes", (None, 5), "float32", most=2)], "shape"),
        ([Field("x", "tokens", (None,), "int32")], "declare the maximum"),
        ([Field("x", "number", (3,), "float32", most=2)], "cannot be padded"),
    ],
)
def test_declarations_that_contradict_themselves(declared, says):
    with pytest.raises(errors.BadRequest, match=says):
        fields.check(declared)
