"""The program that draws: from a run of pixels to images in a file and in a figure."""

import cv2
import numpy as np
import programs
import pytest

SECTIONS = dict(
    seed=0, batch_size=64, steps=30,
    data=dict(name="digits", train="train[:90%]", val="train[90%:]", test="test", statistics=((0.0,), (1.0,))),
    model=dict(name="igpt_s", colours=17, pixels=64, width=16, depth=1, heads=2),
    task=dict(name="pixels"), optim=dict(name="adamw", lr=3e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """A run that has learnt that most of a digit is black."""
    folder = tmp_path_factory.mktemp("pixels")
    done = program(
        "train", programs.write_config(folder / "c.py", SECTIONS), f"--workdir={folder / 'run'}", "--report=false"
    )
    assert done.code == 0, done.err
    return folder / "run"


def drawn(program, run, *flags):
    done = program("generate", f"--workdir={run}", *flags)
    assert done.code == 0, done.err
    assert "generated.npz" in done.out
    with np.load(run / "generated.npz") as file:
        return {name: file[name] for name in file}


def test_images_are_drawn_and_do_not_depend_on_the_batch(run, program):
    found = drawn(program, run, "--number=6", "--seed=3")
    assert set(found) == {"images"} and found["images"].shape == (6, 8, 8, 1)
    greys = found["images"] * 16
    np.testing.assert_allclose(greys, greys.round(), atol=1e-5)  # of the 17 that the model tells apart
    assert cv2.imread(str(run / "generated.png")) is not None
    again = drawn(program, run, "--number=4", "--seed=3", "--batch_size=3")
    np.testing.assert_array_equal(again["images"], found["images"][:4])
    assert (drawn(program, run, "--number=4", "--seed=4")["images"] != again["images"]).any()


@pytest.mark.full
def test_upper_halves_are_kept(run, program):
    found = drawn(program, run, "--complete", "--number=3", "--top_k=5")
    # A grey of 255 becomes the nearest of the model's 17.
    np.testing.assert_allclose(found["images"][:, :4], found["originals"][:, :4], atol=0.5 / 255 + 1e-6)
    assert (found["images"][:, 4:] != found["originals"][:, 4:]).any()
    assert (found["given"][:, 4:] == 0.5).all()


REFUSED = {
    "no run": ((), "--workdir is missing"),
    "a split of nothing": (("--workdir=RUN", "--split=test"), "--split is only for --complete"),
    "no token left": (("--workdir=RUN", "--top_p=0"), "--top_p=0 leaves no token"),
    "no folder": (("--workdir=RUN", "--out=/nowhere/at/all"), "the folder does not exist"),
    "too many": (("--workdir=RUN", "--complete", "--number=361"), "has 360 images, not 361"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, run, program):
    given, words = REFUSED[what]
    done = program("generate", *(flag.replace("RUN", str(run)) for flag in given))
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1, done
