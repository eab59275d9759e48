"""How many examples there are, with the data and without."""

import pytest

from recvis_jax import errors
from recvis_jax.planning import sizes


def test_data_that_are_not_there_have_their_published_sizes(tmp_path):
    data = dict(
        name="imagenet2012", data_dir=str(tmp_path), train="train[:-10000]", val="train[-10000:]", test="validation"
    )
    found, mocked = sizes.examples_of(data)
    assert found.number == 1_281_167 - 10_000 and "table of sizes" in found.source
    assert mocked == data | {"mock": 64, "train": "train", "val": None, "test": None}
    found, _ = sizes.examples_of(data | {"train": "train[:50%]+validation"})
    assert found.number == round(1_281_167 / 2) + 50_000


def test_parts_of_data_that_are_not_there(tmp_path):
    data = dict(name="cifar10", data_dir=str(tmp_path), train="train")
    found, mocked = sizes.examples_of(data | {"per_class": 40})
    assert found.number == 400 and mocked["per_class"] == 0
    found, mocked = sizes.examples_of(data | {"classes": [3, 5], "per_class": 40})
    assert found.number == 80 and mocked["mock"] == 500
    found, mocked = sizes.examples_of(data | {"classes": [3, 5]})
    assert found.number == 50_000 and "before some classes are chosen" in found.source


def test_data_that_are_there_say_themselves():
    data = dict(name="digits", train="train[:90%]")
    found, same = sizes.examples_of(data)
    assert found.number == 1293 and "the data set itself" in found.source and same is data
    found, _ = sizes.examples_of(dict(name="imagenet2012", mock=48, train="train[:75%]"))
    assert found.number == 36


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            dict(name="oxford_flowers102"),
            "no data set 'oxford_flowers102' .* plan knows only the sizes of imagenet2012",
        ),
        (dict(name="imagenet2012", train="trian"), "imagenet2012 has no split 'trian'"),
    ],
)
def test_what_is_refused(data, message, tmp_path):
    with pytest.raises(errors.BadRequest, match=message):
        sizes.examples_of(data | {"data_dir": str(tmp_path)})
