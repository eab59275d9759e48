"""What `describe` prints: totals against published numbers, layers that add up to them, and what is refused."""

import re

import programs
import pytest

ROOT = programs.ROOT
UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


def number(cell):
    """A cell as 4.089 G, 102 MB or 25,557,032."""
    value, unit = re.fullmatch(r"([\d,.]+) ?([kMG]?)B?", cell).groups()
    return float(value.replace(",", "")) * UNITS[unit]


def describe(program, *flags):
    """(layers {name: {column: cell}}, totals {row: [cells]}, all text)."""
    got = program("describe", *flags)
    assert got.code == 0 and not got.err, got
    *before, table = got.out.rstrip().split("\n\n")
    totals = {}
    for line in table.splitlines():
        label, *cells = re.split(r"  +", line)
        totals[label] = cells
    layers = {}
    if before:
        head, *rows = before[0].splitlines()
        ends = {m[0]: m.end() for m in re.finditer(r"\S+", head)}
        starts = dict(zip(ends, [0, *ends.values()], strict=False))
        for row in rows:
            # The first column is left-aligned and as wide as its longest name, the others end where their heads do.
            name = row.split()[0]
            layers[name] = {c: row[max(starts[c], len(name)) : ends[c]].strip() for c in ends if c != "layer"}
    return layers, totals, got.out


@pytest.mark.full
def test_several_models_side_by_side(program):
    layers, totals, _ = describe(program, "--model=resnet50,vit_s16,mae_b16")
    assert not layers and totals[""] == ["resnet50", "vit_s16", "mae_b16"]
    assert totals["images"] == ["224x224x3"] * 3
    # torchvision's and timm's numbers of parameters, and transformers' of those that are trained.
    parameters = [number(c) for c in totals["parameters"]]
    assert parameters == [25_557_032, 22_050_664, 111_655_680]
    # torchvision's GFLOPS of ResNet-50's weights are 4.09, fvcore's of timm's ViT-S/16 4.6.
    macs = [number(c) for c in totals["MACs an image"]]
    assert macs[:2] == [pytest.approx(4.09e9, rel=0.003), pytest.approx(4.6e9, rel=0.003)]
    assert [number(c) for c in totals["FLOPs an image, 2 a MAC"]] == pytest.approx([2 * m for m in macs], rel=1e-3)
    for numbers, kind in enumerate(("sgd", "momentum", "adam"), 1):  # float32 numbers for each parameter
        state = [number(c) for c in totals[f"parameters and state of {kind}"]]
        assert state == pytest.approx([4 * numbers * p for p in parameters], rel=5e-3)


@pytest.mark.parametrize(
    "flags",
    [
        ("--model=resnet20", "--image_size=32", "--num_classes=10"),
        ("--model=vit_ti16", "--image_size=96x160"),
        (f"--config={ROOT}/configs/fashion_mnist/mae_pretrain.py",),
    ],
)
def test_layers_add_up_to_the_totals(flags, program):
    layers, totals, text = describe(program, *flags)
    for column, row in (("parameters", "parameters"), ("MACs", "MACs an image")):
        whole = sum(number(layer[column]) for layer in layers.values() if layer[column])
        assert number(totals[row][0]) == pytest.approx(whole, rel=0 if column == "parameters" else 6e-4)
    for word in ("MACs:", "sees:", "step:", "pad:"):
        assert text.count(word) == 1, "the columns are explained"
    if "--image_size=96x160" in flags:
        assert totals["images"] == ["96x160x3"] and layers["patch_embed/proj"]["output"] == "6x10x192"
        assert layers["patch_embed/proj"] | {"pad": "0", "sees": "16", "step": "16"} == layers["patch_embed/proj"]


@pytest.mark.full
def test_a_config_decides_images_and_optimizer(program):
    """LeNet-5 by hand, of data that are not there: nothing is read."""
    flag = f"--config={ROOT}/configs/fashion_mnist/lenet5.py"
    where = "--config.data.data_dir=/nowhere"
    layers, totals, _ = describe(program, flag, where, "--config.optim.name=adamw")
    assert totals[""] == ["lenet5"] and totals["images"] == ["28x28x1"] and totals["parameters"] == ["61,706"]
    expected = {
        "conv1": ("28x28x6", "156", "117,600", "5", "1", "2"),
        "pool1": ("14x14x6", "", "", "6", "2", "2"),
        "conv2": ("10x10x16", "2,416", "240,000", "14", "2", "2"),
        "pool2": ("5x5x16", "", "", "16", "4", "2"),
        "fc1": ("120", "48,120", "48,000", "all", "", ""),
        "fc2": ("84", "10,164", "10,080", "all", "", ""),
        "head": ("10", "850", "840", "all", "", ""),
    }
    assert {name: tuple(layers[name].values()) for name in expected} == expected
    assert totals["MACs an image"] == ["416.5 k"]
    outputs = sum(eval(layer["output"].replace("x", "*")) for layer in layers.values())
    assert number(totals["outputs of all layers an image, float32"][0]) == pytest.approx(4 * outputs, rel=5e-3)
    (state,) = (row for row in totals if row.startswith("parameters and state of adamw"))
    assert number(totals[state][0]) == pytest.approx(4 * 3 * 61_706, rel=5e-3)
    flags = ("--config.optim.name=sgd", "--config.ema_decay=0.9", "--config.model.num_classes=20")
    _, totals, _ = describe(program, flag, where, *flags)
    parameters = 61_706 + 10 * 85
    assert totals["parameters"] == [f"{parameters:,}"]
    assert number(totals["parameters and state of sgd and average"][0]) == pytest.approx(4 * 2 * parameters, rel=5e-3)


REFUSED = {
    "neither": ([], r"give one of --model=NAME\[,NAME\.\.\.\] and --config=FILE"),
    "both": (["--model=lenet5", f"--config={ROOT}/configs/digits/lenet.py"], "give one of"),
    "model": (["--model=lenet5,resnet51"], r"unknown model 'resnet51'\. Did you mean 'resnet5.'\? There are: alexnet"),
    "size": (["--model=lenet5", "--image_size=8x"], r"--image_size=8x is neither a number of pixels, as 224, nor"),
    "too small": (["--model=alexnet", "--image_size=32"], r"AlexNet needs images of at least 63x63, not 32x32"),
    "patches": (["--model=vit_s16", "--image_size=100"], r"100x100 images are not made of 16x16 patches"),
    "channels": (["--model=lenet5", "--channels=0"], "--channels=0"),
    "size of a config": (
        [f"--config={ROOT}/configs/digits/lenet.py", "--image_size=32"],
        r"--image_size goes with --model; a config says by itself",
    ),
    "key": ([f"--config={ROOT}/configs/digits/lenet.py", "--config.model.nam=mlp"], r"unknown key .*model\.nam"),
    "no config": (["--config=nowhere.py"], r"nowhere\.py"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what, program):
    flags, pattern = REFUSED[what]
    got = program("describe", *flags)
    assert got.code == 2 and not got.out, got
    assert len(got.err.splitlines()) == 1 and re.search(pattern, got.err), got.err
