"""What the command line says of a config's keys."""

import os
import types
import typing

import pytest

from recvis_jax import build, config, errors, models, overrides, pretrained, trained
from recvis_jax.data import windows
from recvis_jax.data.texts import Texts
from recvis_jax.tasks import TASKS
from recvis_jax.train import train
from recvis_jax.training import optim, optimizers, schedules, sharding

FILE = """
import ml_collections
def get_config(arg=None):
    c = ml_collections.ConfigDict(dict(
        epochs=3.0, eval_every=1.0, init_from="runs/a", sharding="tensor",
        data=dict(name="digits", statistics="digits", classes=()), optim=dict(lr=0.1, warmup=0.05),
    ))
    c.half = c.get_ref("epochs") / 2
    c.arg = arg
    return c.lock()
"""
PLAIN = {
    "epochs": 3.0, "eval_every": 1.0, "init_from": "runs/a", "sharding": "tensor", "half": 1.5, "arg": None,
    "data": {"name": "digits", "statistics": "digits", "classes": []}, "optim": {"lr": 0.1, "warmup": 0.05},
}  # fmt: skip


def read(tmp_path, *words, file=FILE, name="c.py"):
    (tmp_path / "c.py").write_text(file)
    flag = config.ConfigFlag("")
    flag.value = str(tmp_path / name)
    rest, flag.overrides = overrides.split(words)
    assert not rest
    return config.read(flag, "x.py")


@pytest.mark.parametrize(
    "words, changes",
    [
        ((), {}),
        # types are those that are typed
        (("--config.eval_every=50",), {"eval_every": 50}),
        (("--config.eval_every=50.0",), {"eval_every": 50.0}),
        (("--config.epochs=4",), {"epochs": 4, "half": 2.0}),
        (("--config.optim.lr=-1e-3",), {"optim": {"lr": -1e-3, "warmup": 0.05}}),
        (("--config.optim.lr=1",), {"optim": {"lr": 1, "warmup": 0.05}}),
        (("--config.optim.warmup=5",), {"optim": {"lr": 0.1, "warmup": 5}}),
        (("--config.x=1_000", "--config.y=+3", "--config.z=007"), {"x": 1000, "y": 3, "z": "007"}),
        (("--config.x=True", "--config.y=false", "--config.z"), {"x": True, "y": False, "z": True}),
        (("--config.x=(1, 2)", "--config.y=1,2", "--config.z=[]"), {"x": [1, 2], "y": [1, 2], "z": []}),
        (("--config.x={'a': {'b': 1.0}}",), {"x": {"a": {"b": 1.0}}}),
        # None, and removal
        (("--config.epochs=None", "--config.steps=10"), {"epochs": None, "half": None, "steps": 10}),
        (("--noconfig.eval_every",), {"eval_every": ...}),
        (("--config.model.scan", "--noconfig.model.scan"), {"model": {"scan": False}}),
        (("--noconfig.optim",), {"optim": ...}),
        # text
        (("--config.data.name=2024", "--config.data.statistics=none"),
         {"data": {"name": "2024", "statistics": "none", "classes": []}}),
        (("--config.data.augment=pad_crop(4, mode='edge')|flip", "--config.data.val=", "--config.data.classes=1,boot"),
         {"data": PLAIN["data"] | {"augment": "pad_crop(4, mode='edge')|flip", "val": "", "classes": [1, "boot"]}}),
        (("--config.data.statistics=((0.1,),(0.2,))",), {"data": PLAIN["data"] | {"statistics": [[0.1], [0.2]]}}),
        (("--config.metrics=accuracy,top_5",), {"metrics": ["accuracy", "top_5"]}),
        (("--config.metrics=top_5",), {"metrics": ["top_5"]}),
        (("--config.checkpoint_dir='a b=c'",), {"checkpoint_dir": "a b=c"}),
        # sections that the file lacks or says in one word
        (("--config.optim.schedule_args.final=0.1",), {"optim": PLAIN["optim"] | {"schedule_args": {"final": 0.1}}}),
        (("--config.probe.protocols=knn,linear",), {"probe": {"protocols": ["knn", "linear"]}}),
        (("--config.sharding.model=4",), {"sharding": {"strategy": "tensor", "model": 4}}),
        (("--config.init_from.new_head=True",), {"init_from": {"source": "runs/a", "new_head": True}}),
        (("--config.init_from=b", "--config.init_from.new_head"), {"init_from": {"source": "b", "new_head": True}}),
        (("--config.init_from.new_head", "--config.init_from=b"), {"init_from": {"source": "b", "new_head": True}}),
        (("--config.init_from.new_head", "--config.init_from=None"), {"init_from": None}),
        # order, two words, the last counts
        (("--config.x=1", "--config.x=2"), {"x": 2}),
        (("--config.x", "-5", "--config.y", "a", "-config.z=3"), {"x": -5, "y": "a", "z": 3}),
    ],
)  # fmt: skip
def test_overrides(words, changes, tmp_path):
    expected = {k: v for k, v in (PLAIN | changes).items() if v is not ...}
    found = read(tmp_path, *words)
    assert found == expected

    def kinds(x):
        return {k: kinds(v) for k, v in x.items()} if isinstance(x, dict) else type(x)

    assert kinds(found) == kinds(expected)


@pytest.mark.parametrize(
    "word, pattern",
    [
        ("--config.=3", r"--config\.=3 names no key"),
        ("--config..lr=3", r"names no key"),
        ("--config.optim.=3", r"names no key"),
        ("--config.optim.1=3", r"names no key"),
        ("--noconfig.optim=3", r"takes no value"),
        ("--config.optim.lr.x=3", r"config\.optim\.lr is 0\.1, which has no keys"),
        ("--config.x=1j", r"config\.x is of type complex"),
        ("--config.x=...", r"config\.x is of type ellipsis"),
        ("--config.x=1e999", r"config\.x is inf; it takes a finite number"),
        (f"--config.x={'{1:' * 30}0{'}' * 30}", r"nested sections"),
    ],
)
def test_wrong_overrides(word, pattern, tmp_path):
    with pytest.raises(errors.BadRequest, match=pattern) as caught:
        read(tmp_path, word)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_the_argument_comes_after_the_first_colon_behind_a_file(tmp_path):
    assert read(tmp_path, name="c.py:a:b,c=1")["arg"] == "a:b,c=1"
    (tmp_path / "a:b.py").write_text(FILE)
    assert read(tmp_path, name="a:b.py:x")["arg"] == "x"


BODY = "import ml_collections, numpy as np\nfrom recvis_jax import errors\ndef get_config(arg=None):\n    return "


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("def get_config(:\n", r"c\.py, line 1 raises SyntaxError \(invalid syntax"),
        ("\nimport recvis_jaxx\n", r"c\.py, line 2 raises ModuleNotFoundError \(No module named 'recvis_jaxx'"),
        ("x = 1\n", r"c\.py defines no function get_config"),
        ("get_config = 3\n", r"defines no function get_config"),
        (BODY + "1 / 0\n", r"c\.py, line 4 raises ZeroDivisionError \(division by zero"),
        (BODY + "None\n", r"get_config of .*c\.py returns NoneType"),
        (BODY + "[1]\n", r"returns list"),
        (BODY + "exit()\n", r"line 4 raises SystemExit"),
        (BODY + "undefined\n", r"line 4 raises NameError"),
        (BODY + "get_config()\n", r"RecursionError"),
        (BODY + "errors.choose({}, 'a', 'b')\n", r"unknown b 'a'"),
        (BODY + "ml_collections.ConfigDict(dict(a=dict(b=np.zeros(3))))\n", r"config\.a\.b is of type numpy.ndarray"),
        (BODY + "ml_collections.ConfigDict(dict(a=[print]))\n", r"config\.a\[0\] is of type builtin_function"),
        (BODY + "ml_collections.ConfigDict(dict(a=float('nan')))\n", r"config\.a is nan"),
        (BODY + "ml_collections.ConfigDict(dict(a={1, 2}))\n", r"config\.a is of type set"),
        (
            BODY + "ml_collections.ConfigDict(dict(a=ml_collections.config_dict.required_placeholder(int)))\n",
            r"complete",
        ),
        ("a\0b", r"c\.py"),
        ("x = '\udcff'", r"not UTF-8"),
        ("def get_config(a, b):\n    pass\n", r"TypeError"),
        ("raise KeyError\n", r"line 1 raises KeyError"),
        (f"x = {'(' * 300}", r"SyntaxError"),
        (f"x = '{'a' * 2**21}'", r"at most 1,048,576 are read"),
    ],
)
def test_config_files_that_give_no_config(text, pattern, tmp_path):
    (tmp_path / "c.py").write_bytes(text.encode("utf-8", "surrogateescape"))
    flag = config.ConfigFlag("")
    flag.value = str(tmp_path / "c.py")
    with pytest.raises(errors.BadRequest, match=pattern) as caught:
        config.read(flag, "x.py")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_plain_dicts_and_numbers_of_numpy_are_taken(tmp_path):
    text = BODY + "dict(a=np.float32(0.5), b=np.int64(3), c=dict(d=np.bool_(True)))\n"
    assert read(tmp_path, file=text) == {"a": 0.5, "b": 3, "c": {"d": True}}
    assert read(tmp_path, file=BODY + "ml_collections.FrozenConfigDict(dict(a=(1,)))\n") == {"a": [1]}


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_config_files_that_are_no_files(kind, tmp_path):
    path = {"missing": tmp_path / "no.py", "folder": tmp_path, "device": "/dev/zero"}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(errors.BadRequest, match=r"there is no config file|not a regular file"):
        config.load(str(path))


def test_keys_of_text_are_those_that_the_functions_take_as_text():
    """Of all functions that a section's keys go to."""
    functions = [
        train,
        build.open_data,
        windows.labelled,
        Texts,
        optim.make_optimizer,
        sharding.make_mesh,
        pretrained.load,
    ]
    functions += [trained.make_prober, *TASKS.values(), *schedules.SCHEDULES.values()]
    functions += [rule.direction for rule in optimizers.OPTIMIZERS.values()]
    functions += [*{getattr(m, "func", m) for m in (models.MODELS | models.DENSE | models.AROUND).values()}]
    found = set()
    for function in functions:
        for name, parameter in errors.keywords(function).items():
            hints = (parameter.annotation,)
            if typing.get_origin(parameter.annotation) in (typing.Union, types.UnionType, typing.Literal):
                hints = typing.get_args(parameter.annotation)
            if str in hints or all(isinstance(h, str) for h in hints):
                found.add(name)
    given = {"workdir", "params", "run", "say", "variables"}  # by the programs
    both = {"norm"}  # True or False of a probe, a name elsewhere
    assert found - given - both == overrides.TEXTS
