"""Every config: it loads, its keys are known, its header is true, and its smoke run goes from end to end."""

import importlib.util
import json
import re

import ml_collections
import programs
import pytest

from recvis_jax import build, checks, config, errors, represent, train
from recvis_jax.data import DATASETS
from recvis_jax.training.step import make_train_step

EVERY = sorted(str(p.relative_to(programs.ROOT)) for p in (programs.ROOT / "configs").rglob("*.py"))


def written(path):
    """What a config's file says, with that of the sibling of which it is a variant."""
    path = programs.ROOT / path
    text = path.read_text()
    sibling = re.search(r'config\.like\(__file__, "(\w+\.py)"', text)
    return text + (path.with_name(sibling[1]).read_text() if sibling else "")


# Whose runs are learnt without gradients.
LEARNT = [p for p in EVERY if "c.learn = " in written(p)]
CONFIGS = [p for p in EVERY if p not in LEARNT]
# A variant of a sibling by one argument, whose smoke run would be the sibling's once more.
VARIANTS = [p for p in CONFIGS if "config.like(__file__" in (programs.ROOT / p).read_text()]
# Networks that take long to compile.
SLOW = ("imagenet", "folder", "resnet", "depth", "speedrun", "scenes")
# Whose like is run already: of these the first step is traced, and not compiled.
TRACED = (
    "configs/cifar10/resnet20.py", "configs/imagenet/vit_s16.py", "configs/coco/detr_r50.py",
    "configs/deepforest/centre.py", "configs/fashion_scenes/centre.py",
    "configs/fashion_mnist/depth.py", "configs/fashion_mnist/five_classes.py", "configs/fashion_mnist/resnet20.py",
    "configs/imagenet/mae_vit_b16_finetune.py", "configs/imagenet/mae_vit_b16_linear_probe.py",
    "configs/imagenet/mae_vit_b16_pretrain.py", "configs/imagenet/resnet50.py", "configs/fashion_mnist/pixels.py",
    "configs/bible/transformer.py", "configs/wmt14_en_de/base.py", "configs/imagenet64/sparse_transformer.py",
    "configs/fashion_mnist/image_transformer.py",
)  # fmt: skip


def load(path, arg=None):
    spec = importlib.util.spec_from_file_location("a_config", programs.ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg), module.__doc__


@pytest.mark.parametrize("path", CONFIGS)
def test_config(path):
    found, text = load(path)
    errors.check_kwargs(train.train, config.plain(found), "config", given=("workdir", "config"))
    errors.check_kwargs(build.open_data, config.plain(found.data), "config.data")
    assert {"data", "model", "optim", "task"} <= set(found)
    assert json.loads(json.dumps(config.plain(found))) == config.plain(found)
    commands = re.findall(r"python -m recvis_jax\.train --config=(\S+?)(?::\S+)? --workdir=runs/\S+", text)
    assert path in commands, "the header says how to run it"
    small = load(path, "smoke")[0]
    assert small.steps <= 4 and small.data.mock and "epochs" not in small
    assert small.data.name == found.data.name and small.optim.name == found.optim.name
    with pytest.raises(errors.BadRequest, match=r"unknown config argument 'smok'\. Did you mean 'smoke'"):
        load(path, "smok")


@pytest.mark.parametrize("path", LEARNT)
def test_learnt_config(path):
    found, text = load(path)
    errors.check_kwargs(represent.Plan, config.plain(found.learn), "config.learn")
    errors.check_kwargs(build.open_data, config.plain(found.data), "config.data")
    assert {"data", "model", "learn", "task", "seed", "batch_size"} == set(found)
    assert json.loads(json.dumps(config.plain(found))) == config.plain(found)
    assert f"python -m recvis_jax.features --config={path}" in text, "the header says how to run it"
    small = load(path, "smoke")[0]
    assert small.data.mock and small.data.name in DATASETS and small.model.words <= 8
    run = represent.make_run(small.copy_and_resolve_references().to_dict())
    assert run.model.num_classes == run.data.info.num_classes
    with pytest.raises(errors.BadRequest, match=r"unknown config argument 'smok'\. Did you mean 'smoke'"):
        load(path, "smok")


def marked(path):
    return pytest.param(path, marks=[pytest.mark.slow] if any(name in path for name in SLOW) else [])


@pytest.mark.full
@pytest.mark.parametrize("path", [p for p in CONFIGS if p in TRACED])
def test_smoke_run_fits_together(path):
    sections = load(path, "smoke")[0].copy_and_resolve_references().to_dict()  # with tuples, which types ask for
    run = build.make_run(**{k: v for k, v in sections.items() if k in errors.keywords(build.make_run)})
    accumulate = sections.get("accumulate", 1)
    checks.check_run(run, accumulate)
    step = make_train_step(
        run.task, run.optimizer, augment=run.data.augment, accumulate=accumulate, shardings=run.shardings
    )
    checks.check_step(run, accumulate, step, next(build.train_batches(run, 0)))
    batch = next(iter(build.eval_batches(run, run.data.val or run.data.train)))
    if run.data.info.vocabulary:
        assert len(batch["source"]) == len(batch["target"]) == run.eval_batch_size
    else:
        assert batch["image"].shape == (run.eval_batch_size, *run.data.image_shape)


@pytest.mark.parametrize("path", [marked(p) for p in CONFIGS if p not in (*VARIANTS, *TRACED)])
def test_smoke_run(path, program, tmp_path):
    ended = program("train", f"--config={programs.ROOT / path}:smoke", f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    there = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints/last/4", "tensorboard"} <= there
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in there)
    assert not [name for name in there if name.endswith(".part")]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["step"] == 4 and summary["reason"] == "done" and summary["seconds"] > 0
    assert summary["parameters"] > 100 and f"{summary['parameters']:,} parameters" in ended.out
    data = load(path, "smoke")[0].data
    assert set(summary["final"]) == {"step", *(split for split in ("val", "test") if data[split])}
    if data.val:
        assert set(summary["best"]) == set(summary["final"])
        assert programs.steps(tmp_path / "run", "best") == [summary["best"]["step"]]
    assert [(r["step"], r["split"]) for r in programs.records(tmp_path / "run")] == [
        (step, split) for step in (2, 4) for split in ("train", "val") if split == "train" or data.val
    ]
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "next: python -m recvis_jax.evaluate --workdir=" in ended.out


# Arguments that change what a smoke run does, with the config that takes them.
ARGUMENTS = [
    ("fashion_mnist/mae_finetune.py", "per_class=60,scratch"),
    ("fashion_mnist/mae_finetune.py", "per_class=60,last=2"),
    ("fashion_mnist/mae_finetune.py", "source=runs/nowhere"),
    ("fashion_mnist/mae_linear_probe.py", "source=runs/nowhere"),
    ("fashion_mnist/adaptation.py", "run=source"),
    ("fashion_mnist/adaptation.py", "run=finetuned"),
    ("fashion_mnist/adaptation.py", "run=scratch,scenes=100"),
    ("fashion_mnist/speedrun.py", "val=True"),
    ("folder/resnet18.py", "name=pictures"),
    ("imagenet/mae_vit_b16_finetune.py", "size=b"),
    ("fashion_mnist/pixels.py", "attention=local_2d"),
    ("fashion_mnist/image_transformer.py", "attention=local_2d,output=logistics"),
    ("fashion_mnist/image_transformer.py", "upscale"),
]


@pytest.mark.parametrize("path, arg", ARGUMENTS)
@pytest.mark.parametrize("order", ["{},smoke", "smoke,{}"])
def test_smoke_needs_neither_data_nor_weights(path, arg, order):
    small = load(f"configs/{path}", order.format(arg))[0]
    assert "init_from" not in small and small.data.mock
    assert small.data.name in DATASETS and small.steps <= 4
    assert build.open_data(**config.plain(small.data)).train.length >= small.batch_size


def test_arguments():
    assert config.parse_arg(None, depth=20) == ml_collections.ConfigDict({"smoke": False, "depth": 20})
    found = config.parse_arg("smoke,depth=56,plain=True,name=vit_b16", depth=20, plain=False, name="vit_s16")
    assert found.to_dict() == {"smoke": True, "depth": 56, "plain": True, "name": "vit_b16"}
    with pytest.raises(errors.BadRequest, match=r"unknown config argument 'dept'\. Did you mean 'depth'\? There are: "):
        config.parse_arg("dept=56", depth=20)
    with pytest.raises(errors.BadRequest, match=r"config argument depth='deep' should be int"):
        config.parse_arg("depth=deep", depth=20)


def test_differences_name_keys_at_every_level():
    old = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "gone": 3}
    new = {"a": 1, "b": {"c": [1, 3], "d": {"e": 0, "f": 1}}, "new": {"g": 4}}
    assert config.differences(old, new) == [
        "b.c: [1, 2] -> [1, 3]", "b.d.e: None -> 0", "b.d.f: None -> 1", "gone: 3 -> None", "new.g: None -> 4",
    ]  # fmt: skip
    assert config.differences(old, json.loads(json.dumps(old))) == []
    word, section = {"init_from": "x.npz"}, {"init_from": {"source": "x.npz"}}
    assert config.differences(word, section) == config.differences({"init_from": ""}, {}) == []
    assert config.differences({"a": None}, {"a": {}}) == []
    assert config.differences({"a": "word"}, {"a": {"b": 1}}) == ["a: 'word' -> {'b': 1}"]
    section["init_from"]["new_head"] = True
    assert config.differences(word, section) == ["init_from.new_head: None -> True"]


def test_references_are_resolved_and_tuples_are_lists():
    c = ml_collections.ConfigDict(dict(epochs=3, data=dict(splits=("a", "b"))))
    c.half = c.get_ref("epochs") / 2
    plain = config.plain(c.copy_and_resolve_references())
    assert plain == {"epochs": 3, "half": 1.5, "data": {"splits": ["a", "b"]}} and type(plain["data"]) is dict
