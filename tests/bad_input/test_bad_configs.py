"""Configs: a wrong value of every key, in files and on the command line."""

import copy
import functools
import math
import shutil

import harness
import ml_collections
import programs
import pytest
import small
from harness import Case

from recvis_jax import config, errors, train

NAN, INF = math.nan, math.inf

# A run of no time, in case that a wrong value is taken.
TINY = dict(
    steps=2, batch_size=16, eval_batch_size=16, log_every=1, eval_every=2, checkpoint_every=2, ema_decay=None,
    data__train="train[:48]", data__val="train[48:64]", data__test="test[:16]", data__transform="", data__augment="flip",
    model=dict(name="mlp", hidden=(4,)),
)  # fmt: skip

# Key -> values that it cannot have. What is not in small.SECTIONS counts as well.
TEXT = (5, None, [], {}, True)
WHOLE = ("x", 1.5, [1], {}, None, NAN, "")
NUMBER = ("x", [1], {}, NAN, INF, -INF, "")
WRONG = {
    "seed": (*WHOLE, -1, 2**64, 2**200),
    "steps": ("x", 1.5, [1], {}, "", 0, -1, True),
    "batch_size": (*WHOLE, 0, -16, 64, 10**9, 10**30, True),
    "eval_batch_size": ("x", 1.5, [1], {}, "", 0, -16, 10**30, True),
    "accumulate": (*WHOLE, 0, -1, 3, 32, 10**30),
    "compile": (*TEXT, "xla", "", "JIT"),
    "dtype": (*TEXT, "float16", "f32", "float64", ""),
    "sharding": (5, [], "shard", "", {"strategy": "x"}, {"strategy": 5}, {"data": -1}, {"data": 999}, {"data": "x"}, {"date": 1},
                 {"model": 0}, {"model": 10**30}, {"rules": 5}, {"rules": [["("]]}, {"rules": [["(", ["model"]]]}),
    "ema_decay": ("x", [1], {}, NAN, INF, "", 1.0, 2, -0.1),
    "metrics": (5, {}, "accuracy", ["acuracy"], [5], ["top_0"], ["top_11"], ["top_-1"], ["top_x"], ["top_"], [None], [""], [["accuracy"]]),
    "log_every": (*NUMBER, None, 0, -1, 0.0, -0.5),
    "eval_every": (*NUMBER, None, 0, -1, 0.0, -0.5),
    "checkpoint_every": (*NUMBER, None, 0, -1, 0.0, -0.5),
    "early_stop": (*WHOLE, -1, -100),
    "init_from": (5, True, [], ["a.npz"], "nowhere.safetensors", "/dev/zero", "nowhere", {"source": "nowhere.npz"}, {"sorce": "x"},
                  {"source": 5}, {"new_head": True}, {"source": "a.npz", "resample": "x"}),
    "checkpoint_dir": (5, [], {}, True, "/dev/null/x", "/proc/x", "x\0y"),
    "probe": (5, "knn", [], {"protocols": ["knnn"]}, {"protocols": "knn"}, {"protocols": [5]}, {"every": 0}, {"every": -1},
              {"every": "x"}, {"every": NAN}, {"layer": "feature"}, {"layer": 5}, {"pool": "men"}, {"pool": 5}, {"train": "trian"}, {"x": 1}),
    "data": (5, None, "digits", [], {}),
    "model": (5, None, "mlp", [], {}),
    "optim": (5, None, "sgd", [], {}),
    "task": (5, "classify", [], {"los": "x"}, {"name": "clasify"}, {"name": 5}),
    "data.name": (*TEXT, "", "digit", "../digits", "x\0y", "/dev/zero", "digits:9.9.9", "\x1b[2J"),
    "data.train": (*TEXT, "trian", "train[", "train[:0]", "train[9:3]", "train[x:]", "train[:5%", "train[:1e9]", "train+", "x" * 10**5),
    "data.val": (5, [], {}, True, "trian", "train[", "train[:0]", "train", "train[47:60]", "train[0:1]"),
    "data.test": (5, [], {}, True, "tset", "test[", "test[:0]", "train", "train[63:70]"),
    "data.transform": (*TEXT, "resize", "resize()", "resize(0)", "resize(-8)", "resize('x')", "resize(8", "resize(8,)x", "resize(8)|", "|",
                       "rsize(8)", "__import__('os')", "resize(__import__('os'))", "resize(8, metod=1)", "resize(10**9)", "resize(1000000000)",
                       "random_crop(100)", "resize(8.5)", "lambda: 0", "resize((8,))", "resize(nan)", "resize(8)" + "|resize(8)" * 9999,
                       "random_resized_crop(8, scale=(2, 1))", "random_resized_crop(8, scale=(0, 0))", "(" * 9999),
    "data.eval_transform": (*TEXT, "resize(4)", "resize(4, 8)", "resize", "random_crop(6)", "rsize(8)", "resize(-8)", "resize(8", "flip"),
    "data.augment": (*TEXT, "flipp", "flip(", "flip(2)", "flip(-1)", "flip('x')", "pad_crop(-1)", "pad_crop(100)", "pad_crop(1.5)", "pad_crop(8)",
                     "pad_crop(4, 'x')", "mixup(-1)", "mixup(0)", "mixup('x')", "mixup", "cutmix(-1)", "cutout(0)", "cutout(-3)", "cutout('x')", "flip|",
                     "flip||flip", "rotate('x')", "rotate(-5)", "randaugment(2, 9)", "flip(p=0.5, p=0.5)", "flip(q=0.5)", "__import__('os')",
                     "color_jitter(-1)", "mixup(1e400)", "random_resized_crop(-1)", "pad_crop(1000000000)"),
    "data.statistics": (5, None, True, {}, "digit", "", [], [0.5], [[0.5], [0.0]], [[0.5], [-1.0]], [["x"], [1.0]], [[NAN], [1.0]], [[0.5], [INF]],
                        [[0.5] * 3, [1.0] * 3], [[0.5], [1.0], [2.0]], [[], []], [None, None]),
    "data.cache": (*TEXT, "disk", "", "HOST"),
    "data.threads": (*WHOLE, 0, -1, 10**6),
    "data.workers": (*WHOLE, -1, 10**6),
    "data.mock": (*WHOLE, -1, 10**12),
    "data.classes": (5, "01", {}, [99], [-1], [1, 1], ["ten"], [1.5], [[1]], [None], [10**30]),
    "data.per_class": (*WHOLE, -1, 10**6),
    "data.subset_seed": (*WHOLE, -1),
    "data.fields": (5, "boxes", {}, ["boxes"], [5], [None]),
    "data.most_objects": (*WHOLE, -1, 5, 10**9),
    "data.visible": (*NUMBER, None, -0.1, 1.5, 0.5),
    "data.buckets": (5, "x", [], {"image": [8]}, {"words": [8]}, {"label": "x"}, {"label": None}),
    "data.windows": (5, "x", [], {"scale": 1}, {"scales": "x"}),
    "model.name": (*TEXT, "", "mpl", "resnet", "../mlp", "\x1b[2J", "x" * 10**5),
    "model.hidden": (5, "64", {}, [0], [-4], ["x"], [1.5], [[4]], [None], [True], [10**12]),
    "model.norm": (*TEXT, "", "btach"),
    "model.dropout": (*NUMBER, None, -0.1, 2, 1.5),
    "model.activation": (*TEXT, "", "rellu"),
    "model.num_classes": (*WHOLE, -1, 5, 0, True),
    "optim.name": (*TEXT, "", "adamm"),
    "optim.lr": (*NUMBER, None, -0.1, 1e30, 1e300, True),
    "optim.base_batch": (*WHOLE, -1, -256),
    "optim.schedule": (*TEXT, "", "cosinus"),
    "optim.schedule_args": (5, "x", [1], {"finale": 0.1}, {"final": "x"}, {"final": NAN}, {"final": -0.5}, {"final": None}, {"lr": 0.1}),
    "optim.warmup": (*NUMBER, None, -1, 99, 1.5, -0.1),
    "optim.warmup_epochs": (*NUMBER, None, -1, 999),
    "optim.weight_decay": (*NUMBER, None, -1e-4),
    "optim.decay": (5, {}, True, "(", ["("], [5], "^haed/"),
    "optim.decay_style": (5, {}, [], "", "loose"),
    "optim.freeze": (5, {}, True, "(", ["("], [5], "^haed/", ".*"),
    "optim.clip_norm": (*NUMBER, 0, -1.0),
    "optim.lr_multipliers": (5, "x", {}, [5], [["head/"]], [["(", 0.1]], [["head/", "x"]], [["head/", -1]], [["head/", NAN]], [["^haed/", 0.1]]),
    "optim.layer_decay": (*NUMBER, 0, -0.5, 1.5),
    "optim.layer_blocks": (5, {}, [], "(", "nothing"),
    "optim.momentum": (*NUMBER, -0.1, 1.0, 2),
    "optim.b1": (*NUMBER, 0.5),
    "optim.eps": (*NUMBER, 1e-8),
    "optim.optimizer_args": (5, "x", [1], {"nestrov": True}, {"learning_rate": 1.0}, {"momentum": "x"}),
    "task.name": (5, [], {}, True, "clasify", "mae"),
    "task.loss": (5, [], {}, True, "softmx", "l3"),
    "task.label_smoothing": (*NUMBER, None, -0.1, 1.0, 1.5),
}  # fmt: skip


def key_of(path):
    return path.rpartition(".")[2]


def request(folder, path, value):
    """As `train.main` goes on once it has the config; what is refused leaves no trace."""
    sections = small.sections(**copy.deepcopy(TINY))
    *parents, last = path.split(".")
    functools.reduce(lambda node, key: node[key], parents, sections)[last] = value
    if path in ("steps", "epochs"):
        sections = {k: v for k, v in sections.items() if k not in ("steps", "epochs") or k == path}
    sections = config.plain(ml_collections.ConfigDict(sections))
    try:
        errors.check_kwargs(train.train, sections, "config", given=("workdir", "config"))
        train.train(workdir=str(folder / "run"), config=sections, **sections)
    except errors.BadRequest:
        assert not (folder / "run").exists(), "the refused request left a folder"
        raise


def short(value):
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}... of {len(text)}"


def _words(value):
    """The words of a value: a line that repeats the wrong one says where to look, too."""
    if isinstance(value, dict | list):
        return tuple(w for v in (value.values() if isinstance(value, dict) else value) for w in _words(v))
    return (value[:20],) if isinstance(value, str) and value.strip("|( ") else ()


def value_cases():
    for path, values in {**WRONG, "epochs": ("x", [1], {}, NAN, INF, 0, 0.0, -1, 1e-9, 1e300, True)}.items():
        for value in values:
            names = (
                path,
                f"{key_of(path)}=",
                f"{key_of(path)!r}",
                f"{key_of(path)} ",
                f"config.{path}",
                *_words(value),
            )
            names += ("config.optim",) if path.startswith("optim.") else ("steps",) if path == "epochs" else ()
            yield Case(f"{path}={short(value)}", functools.partial(request, path=path, value=value), names)


def typo(key, i):
    """The key with two letters swapped, one doubled, or one gone."""
    at = i % max(1, len(key) - 1)
    return (key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key.upper(), f"{key}s", f"{key} ")[i % 5]


def key_cases():
    for i, path in enumerate(WRONG):
        wrong = typo(key_of(path), i)
        parent = path.rpartition(".")[0]
        new = f"{parent}.{wrong}" if parent else wrong
        if wrong and wrong != key_of(path):
            yield Case(
                f"{new!r} for {path}", functools.partial(request, path=new, value=1), (wrong.strip(), repr(wrong))
            )
    for new in (
        "data.optim",
        "model.lr",
        "optim.batch_size",
        "task.steps",
        "config",
        "workdir",
        "self",
        "kwargs",
    ):
        yield Case(f"{new} is set", functools.partial(request, path=new, value=1), (key_of(new),))


PARTS = {"values": value_cases, "keys": key_cases}


@functools.cache
def cases(part):
    return list(PARTS[part]())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.full
def test_malformed_configs(part, tmp_path):
    harness.hold(cases(part), tmp_path)


@pytest.mark.full
def test_the_request_is_good_without_the_wrong_value(tmp_path):
    request(tmp_path, "seed", 0)
    assert (tmp_path / "run/summary.json").exists()


# --- what config files return and do ---

FILES = {
    "a dict": "def get_config():\n    return dict(steps=1)\n",
    "nothing": "def get_config():\n    pass\n",
    "a number": "def get_config():\n    return 5\n",
    "a function": "def get_config():\n    return get_config\n",
    "no function": "get_config = 5\n",
    "a wrong name": "def getconfig():\n    return {}\n",
    "nothing at all": "",
    "a null byte": "x = 1\0\n",
    "no end": "def get_config():\n    while\n",
    "an exit": "raise SystemExit(0)\n",
    "an exit inside": "def get_config():\n    raise SystemExit('bye')\n",
    "an error": "def get_config():\n    return {}['x']\n",
    "an error of three lines": "def get_config():\n    raise ValueError('a\\nb\\nc')\n",
    "an error in ESC": "def get_config():\n    raise ValueError('\\x1b[2J')\n",
    "an error of a megabyte": "def get_config():\n    raise ValueError('x' * 10**6)\n",
    "endless recursion": "def get_config():\n    return get_config()\n",
    "two arguments": "def get_config(a, b):\n    return None\n",
    "an empty config": "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n",
    "a set": "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.metrics = {{'accuracy'}}\n    return c\n",
    "an array": "import ml_collections, numpy\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.batch_size = numpy.ones(3)\n    return c\n",
    "a module": "import ml_collections, os\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.seed = os\n    return c\n",
    "a lambda": "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.seed = lambda: 0\n    return c\n",
    "bytes": "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.dtype = b'float32'\n    return c\n",
    "a placeholder": "import ml_collections\nfrom ml_collections import config_dict\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n"
    "    c.seed = config_dict.required_placeholder(int)\n    return c\n",
    "a key that is a number": "import ml_collections\ndef get_config():\n    c = ml_collections.ConfigDict({S})\n    c.model = {{1: 2}}\n    return c\n",
}  # fmt: skip

OVERRIDES = {
    "--config.seed=x": "seed", "--config.seed=": "seed", "--config.seed=1.5": "seed", "--config.seed=1e3": "seed", "--config.seed": "seed",
    "--config.steps=ten": "steps", "--config.batch_size=None": "batch_size", "--config.batch_size=[1]": "batch_size", "--config.batch_size=1_6_": "batch_size",
    "--config.optim.lr=fast": "lr", "--config.optim.lr=": "lr", "--config.optim.lr=nan": "lr", "--config.optim.lr=-inf": "lr", "--config.optim.lr=1,5": "lr",
    "--config.optim.lr.x=1": "lr", "--config.optim=sgd": "optim", "--config.optim.=1": "optim", "--config.=1": "config", "--config..seed=1": "config",
    "--config.optim..lr=1": "optim", "--config.optm.lr=1": "optm", "--config.optim.lrate=1": "lrate", "--config.oprim={}": "oprim", "--config.Seed=1": "Seed",
    "--config.model.hidden=64": "hidden", "--config.model.hidden=(64": "hidden", "--config.model.hidden=(a,b)": "hidden", "--config.model.hidden=[0]": "hidden",
    "--config.model.name=": "name", "--config.model.name=mpl": "mpl", "--config.model.depth=3": "depth", "--config.model=None": "model",
    "--config.metrics=('top_x',)": "top_x", "--config.metrics=(": "metrics", "--config.eval_every=0": "eval_every",
    "--config.eval_every=0.0": "eval_every", "--config.eval_every=soon": "eval_every", "--config.early_stop=-1": "early_stop", "--config.accumulate=0": "accumulate",
    "--config.data.cache=disk": "cache", "--config.data.train=": "train", "--config.data.threads=0": "threads", "--config.data.augment=pad_crop(100)": "pad_crop",
    "--config.data.statistics=((0.5,),(0,))": "statistics", "--config.ema_decay=1": "ema_decay", "--config.ema_decay=x": "ema_decay", "--config.compile=tpu": "compile",
    "--config.seed[0]=1": "seed", "--config.metrics[5]=x": "metrics", "--config.model.hidden[9]=x": "hidden", "--config.__class__=1": "__class__",
    "--config.init_from.new_head=True": "init_from", "--config.init_from=nowhere.npz": "nowhere.npz", "--config.task.loss=softmx": "softmx",
    "--config.epochs=1": "epochs", "--config.\x1b[2J=1": "config", "--config.seed=99999999999999999999999": "seed", "--config.optim.lr=1e30": "lr",
}  # fmt: skip


@pytest.mark.slow
def test_malformed_config_files(program, tmp_path):
    wrong = []
    path = tmp_path / "own.py"
    for what, text in FILES.items():
        path.write_text(
            text.replace("{S}", repr(small.sections(**TINY))).replace("{{", "{").replace("}}", "}")
            if "{S}" in text
            else text
        )
        wrong += _ended(what, program("train", f"--config={path}", f"--workdir={tmp_path}/run"), "own.py", "config")
        assert not (tmp_path / "run").exists(), what
    path.write_bytes("# Stra\xdfe\n".encode("latin1") + b"def get_config():\n    return 1\n")
    wrong += _ended("no UTF-8", program("train", f"--config={path}", f"--workdir={tmp_path}/run"), "own.py")
    path.unlink()
    for what, make in harness.irregular("own.py").items():
        make(tmp_path)
        wrong += _ended(what, program("train", f"--config={path}", f"--workdir={tmp_path}/run"), "own.py")
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        (tmp_path / "pipe").unlink(missing_ok=True)
    _none(wrong)


@pytest.mark.slow
def test_malformed_overrides(program, tmp_path):
    flag = programs.write_config(tmp_path / "own.py", small.sections(**TINY))
    wrong = []
    for text, name in OVERRIDES.items():
        wrong += _ended(text, program("train", flag, f"--workdir={tmp_path}/run", text), name)
        if (tmp_path / "run/config.json").exists():
            wrong.append(f"{text}: left a run behind")
            shutil.rmtree(tmp_path / "run")
    _none(wrong)


def _ended(what, got, *names):
    """What was wrong with how a program ended."""
    lines = got.err.splitlines()
    good = got.code in (1, 2) and len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < harness.LINE
    bare = [e for e in ("Error: ", "Traceback", "(--debug") if e in got.err]
    if good and not bare and any(n in lines[0] for n in names):
        return []
    return [f"{what}: code {got.code}, {len(lines)} lines [{got.err[:300]!r}]"]


def _none(wrong):
    harness.note(wrong)
    assert not wrong, "\n".join(wrong)
