"""Bad input, as a user gives it: one line that says what was wrong and what would be right, and the exit code."""

import json
import re

import cv2
import numpy as np
import programs
import pytest
import small

from recvis_jax import cli, errors, train


def assert_one_line(got, code, pattern):
    assert got.code == code, got
    assert len(got.err.splitlines()) == 1 and got.err.startswith("error: "), got.err
    assert "Traceback" not in got.out
    assert re.search(pattern, got.err), got.err


def changed(folder, changes):
    return programs.write_config(folder / "config.py", small.sections(**changes))


REQUESTS = {
    # a key that nothing takes, at every level
    "top": (dict(batchsize=8), r"unknown key config\.batchsize\. Did you mean 'batch_size'\? Valid keys"),
    "data": (dict(data__cach="host"), r"unknown key config\.data\.cach\. Did you mean 'cache'\?"),
    "model": (dict(model__hiden=(3,)), r"unknown key (config\.)?model\.hiden\. Did you mean 'hidden'\?"),
    "task": (dict(task__los="softmax"), r"unknown key config\.task\.los\. Did you mean 'loss'\?"),
    "optim": (dict(optim__weightdecay=0.1), r"unknown key config\.optim\.weightdecay\. Did you mean 'weight_decay'\?"),
    "schedule": (
        dict(optim__schedule_args__finale=0.1),
        r"unknown key .*schedule_args\.finale\. Did you mean 'final'\?",
    ),
    "optimizer": (dict(optim__optimizer_args__nestrov=True), r"nestrov"),
    # a name that is in no table
    "dataset": (dict(data__name="digit"), r"no data set 'digit' in .*prepare"),
    "network": (dict(model__name="mpl"), r"unknown model 'mpl'\. Did you mean 'mlp'\? There are: .*lenet5, .*resnet20"),
    "objective": (
        dict(task__name="clasify"),
        r"unknown task 'clasify'\. Did you mean 'classify'\? There are: .*regress",
    ),
    "rule": (dict(optim__name="adamm"), r"unknown optimizer 'adamm'\. Did you mean 'adam.?'\? There are: .*lion.*sgd"),
    "curve": (
        dict(optim__schedule="cosinus"),
        r"unknown schedule 'cosinus'\. Did you mean 'cosine'\? There are: .*rsqrt",
    ),
    "loss": (
        dict(task__loss="softmx"),
        r"unknown loss 'softmx'\. Did you mean 'softmax'\? There are: .*huber.*sigmoid",
    ),
    "metric": (dict(metrics=("acuracy",)), r"unknown metric 'acuracy'\. Did you mean 'accuracy'\? There are: "),
    "top-k": (dict(metrics=("top_11",)), r"top_11 needs at least 11 classes; there are 10"),
    "augment": (dict(data__augment="flipp"), r"unknown .*'flipp'\. Did you mean 'flip'\?"),
    "transform": (
        dict(data__transform="resize(3, metod='area')"),
        r"resize has no argument 'metod'.*Signature: resize\(",
    ),
    "random evaluation": (dict(data__eval_transform="random_crop(6)"), r"draws random numbers; evaluation must not"),
    "statistics": (dict(data__statistics="digit"), r"'digit'.*'digits'"),
    "activation": (dict(model__activation="rellu"), r"'rellu'.*relu"),
    "feature": (dict(data__train="trian"), r"digits has no split 'trian'; its splits: train, test"),
    # wrong types and values
    "type": (dict(batch_size="many"), r"config\.batch_size is 'many', of type str; it takes int"),
    "float": (dict(steps=2.5), r"config\.steps is 2\.5, of type float; it takes int or None"),
    "section": (dict(model="mlp"), r"config\.model is 'mlp', of type str; it takes dict"),
    "choice": (dict(compile="xla"), r"config\.compile is 'xla'.*one of 'jit', 'pmap'"),
    "cache": (dict(data__cache="disk"), r"config\.data\.cache is 'disk'.*'none', 'host', 'device', 'auto'"),
    "dtype": (dict(dtype="float16"), r"'float16'.*'float32', 'bfloat16'"),
    "cache and transform": (dict(data__cache="device"), r"data\.cache='device' .* draws random numbers"),
    "both lengths": (dict(epochs=1.0), r"one of config\.epochs and config\.steps"),
    "neither length": (dict(steps=small.GONE), r"one of config\.epochs and config\.steps"),
    "no steps": (dict(steps=0), r"config\.steps is 0; it takes numbers from 1"),
    "seed": (dict(seed=-1), r"config\.seed is -1; it takes numbers from 0 to 4,294,967,295"),
    "ema": (dict(ema_decay=1.0), r"config\.ema_decay is 1\.0; it takes numbers from 0 to below 1"),
    "every": (dict(eval_every=0), r"config\.eval_every is 0; it takes numbers above 0"),
    "parts": (dict(accumulate=3), r"config\.batch_size=32 is not divisible by .*accumulate=3; 24 would be"),
    "lr": (dict(optim__lr=-0.1), r"optim\.lr is -0\.1; it takes numbers from 0"),
    "no model": (dict(model__name=small.GONE), r"config\.model\.name is missing; there are: "),
    "no lr": (dict(optim__lr=small.GONE), r"config\.optim lacks lr"),
    "no data": (dict(data=small.GONE), r"config lacks data"),
    "warmup": (dict(optim__warmup=99), r"warmup is 99 updates, longer than the whole training of 60"),
    "freeze": (dict(optim__freeze="^haed/"), r"the pattern '\^haed/' matches none of the"),
    # data that do not fit
    "empty split": (dict(data__val="train[50%:50%]"), r"the split 'train\[50%:50%\]' of digits is empty"),
    "overlap": (
        dict(data__val="train[80%:]"),
        r"data\.train='train\[:90%\]' and data\.val='train\[80%:\]' share 14[34] ex",
    ),
    "test overlap": (dict(data__test="train[:5]"), r"data\.train=.* and data\.test='train\[:5\]' share 5 examples"),
    "image size": (dict(model=dict(name="convnet")), r"convnet needs images of at least 16x16, not 8x8"),
    "classes": (dict(model__num_classes=5), r"num_classes"),
    "regression": (
        dict(task=dict(name="regress", loss="softmax")),
        r"unknown regression loss 'softmax'.*huber, l1, l2",
    ),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_bad_config_is_refused_before_anything_is_made(what, tmp_path, capsys):
    changes, pattern = REQUESTS[what]
    sections = small.sections(**changes)
    with pytest.raises(errors.BadRequest) as caught:  # as `train.main` goes on once it has the config
        errors.check_kwargs(train.train, sections, "config", given=("workdir", "config"))
        train.train(workdir=str(tmp_path / "run"), config=sections, **sections)
    assert not (tmp_path / "run").exists()
    code = cli._report(caught.value, 2)
    assert_one_line(programs.Ended(code, *capsys.readouterr()), 2, pattern)


FLAGS = {
    "no config": (["--workdir=W"], r"--config is missing, for instance --config=configs/"),
    "no workdir": ([f"--config={programs.ROOT}/tests/small.py"], r"--workdir is missing, for instance --workdir=runs/"),
    "no such config": (["--config=configs/nowhere.py", "--workdir=W"], r"configs/nowhere\.py"),
    "flag": (["--wokdir=W"], r"unknown flag --wokdir\. Did you mean 'workdir'\?"),
    "argument": (["config.py"], r"unexpected argument 'config\.py'; flags are written --name=value"),
    "config argument": (
        [f"{programs.DIGITS}:smok", "--workdir=W"],
        r"unknown config argument 'smok'\. Did you mean 'smoke'\?",
    ),
    "argument type": ([f"{programs.DIGITS}:smoke=3", "--workdir=W"], r"config argument smoke='3' should be bool"),
    "value type": (
        [f"--config={programs.ROOT}/tests/small.py", "--workdir=W", "--config.batch_size=many"],
        r"config\.batch_size.*many",
    ),
    "new key": (
        [f"--config={programs.ROOT}/tests/small.py", "--workdir=W", "--config.optim.lrate=0.1"],
        r"unknown key .*optim\.lrate",
    ),
}


@pytest.mark.parametrize("what", FLAGS)
def test_bad_flags(what, program, tmp_path):
    flags, pattern = FLAGS[what]
    assert_one_line(program("train", *(f.replace("=W", f"={tmp_path}/run") for f in flags)), 2, pattern)
    assert not (tmp_path / "run").exists()


def test_config_files_that_do_not_run(program, tmp_path):
    for text, pattern in (
        ("def get_config(:\n", "invalid syntax"),
        ("import recvis_jaxx\n", "No module named 'recvis_jaxx'"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return 1 / 0\n", "division by zero"),
    ):
        (tmp_path / "c.py").write_text(text)
        assert_one_line(program("train", f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/run"), 2, pattern)


def test_workdirs(program, tmp_path):
    (tmp_path / "file").write_text("")
    got = program("train", changed(tmp_path, {}), f"--workdir={tmp_path}/file/run")
    assert_one_line(got, 2, r"cannot write to the workdir .*/file/run: Not a directory")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(small.sections(seed=6, optim__lr=0.1)))
    got = program("train", changed(tmp_path, {}), f"--workdir={other}")
    assert_one_line(got, 2, r"holds a run with another config.*Differing: optim\.lr: 0\.1 -> 0\.05; seed: 6 -> 5$")


def test_debug_shows_the_traceback(program, tmp_path):
    got = program("train", changed(tmp_path, dict(seed=-1)), f"--workdir={tmp_path}/run", "--debug")
    assert got.code == 2 and got.err.startswith("Traceback (most recent call last)")
    assert got.err.splitlines()[-1].startswith("error: config.seed is -1; it takes")


@pytest.mark.full
def test_a_failure_is_no_bad_request(program, tmp_path):
    """The rate explodes after step 20, while the checkpoint of that step is still being written."""
    changes = dict(optim__schedule="step", optim__warmup=0, data__augment="flip")
    changes["optim__schedule_args"] = dict(boundaries=(20,) * 5, factor=1e6)
    got = program("train", changed(tmp_path, changes), f"--workdir={tmp_path}/run")
    assert_one_line(got, 1, r"is (nan|-?inf) at step 2[1-5]; the run stops\. Last good checkpoint: step 20\.")
    assert programs.steps(tmp_path / "run", "last")[-1] == 20 and (tmp_path / "run/curves.png").exists()
    assert not (tmp_path / "run/summary.json").exists()
    got = program("evaluate", f"--workdir={tmp_path}/run", "--checkpoint=last", "--split=val")
    assert got.code == 0 and "(step 20)" in got.out


def test_programs_of_no_run(program, tmp_path):
    assert_one_line(program("evaluate"), 2, r"--workdir is missing")
    assert_one_line(
        program("evaluate", f"--workdir={tmp_path}"), 2, r"is not the folder of a run: it has no config\.json"
    )
    (tmp_path / "config.json").write_text("[")
    assert_one_line(program("evaluate", f"--workdir={tmp_path}"), 2, r"config\.json is not valid JSON")
    (tmp_path / "config.json").write_text(json.dumps(small.sections()))
    assert_one_line(
        program("evaluate", f"--workdir={tmp_path}"), 2, r"no checkpoint '(best|last)' in .*has the run saved"
    )
    assert_one_line(program("prepare"), 2, r"--dataset is missing; it is one of .*fashion_mnist.*folder")
    assert_one_line(
        program("prepare", "--dataset=fashion"), 2, r"--dataset=fashion is none of .*Did you mean 'fashion_mnist'"
    )
    assert_one_line(program("prepare", "--dataset=folder", f"--source={tmp_path}/none"), 2, r"/none does not exist")


@pytest.fixture
def pictures(tmp_path):
    """Three classes of four pictures of 8x8."""
    rng = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "pictures" / name / f"{i}.png"
            assert cv2.imwrite(str(path), rng.integers(0, 256, (8, 8, 3), np.uint8))
    return tmp_path / "pictures"


def prepare(program, pictures, *more):
    return program("prepare", "--dataset=folder", f"--source={pictures}", f"--data_dir={pictures.parent}/data", *more)


FOLDER = dict(
    data__name="pictures", data__train="train[:75%]", data__val="train[75%:]", data__test=None, data__statistics="none",
    data__transform="", data__augment="", batch_size=4, eval_batch_size=4, steps=4,
)  # fmt: skip


def train_on(program, folder, **changes):
    flag = changed(folder, FOLDER | dict(data__data_dir=str(folder / "data")) | changes)
    return program("train", flag, f"--workdir={folder}/run")


def test_pictures_that_cannot_be_read(program, pictures, tmp_path):
    (pictures / "b/2.png").write_bytes(b"")
    got = prepare(program, pictures)
    assert got.code == 2 and "b/2.png" in got.err and "Traceback" not in got.err and got.err.startswith("error: ")
    got = prepare(program, pictures, "--on_error=skip")
    assert got.code == 0 and "b/2.png" in got.out and "11 examples" in got.out
    got = train_on(program, tmp_path, data__test="train[:0]")
    assert_one_line(got, 2, r"the split 'train\[:0\]' of pictures is empty")


def test_pictures_of_different_sizes(program, pictures, tmp_path):
    assert cv2.imwrite(str(pictures / "c/3.png"), np.zeros((8, 9, 3), np.uint8))
    assert prepare(program, pictures).code == 0
    got = train_on(program, tmp_path)
    assert_one_line(got, 2, r"different shapes cannot be batched .*Set data\.transform and data\.eval_transform")
    assert not programs.steps(tmp_path / "run", "last")


def test_labels_out_of_range(program, pictures, tmp_path):
    assert prepare(program, pictures).code == 0
    (features,) = (tmp_path / "data").rglob("features.json")
    text = features.read_text()
    assert '"numClasses": "3"' in text
    features.write_text(text.replace('"numClasses": "3"', '"numClasses": "2"'))
    for names in (tmp_path / "data").rglob("label.labels.txt"):
        names.write_text("a\nb\n")
    got = train_on(program, tmp_path)
    assert_one_line(got, 2, r"features\.json is not what was written: the data set is damaged.*--overwrite")
    (record,) = (tmp_path / "data").rglob("recvis_jax.json")
    record.unlink()  # as of a data set that others made
    assert_one_line(train_on(program, tmp_path), 2, r"pictures/train.*: label 2 is outside 0\.\.1")


@pytest.mark.full
def test_data_sets_that_are_not_there(program, pictures, tmp_path):
    assert prepare(program, pictures).code == 0
    got = train_on(program, tmp_path, data__name="picture")
    assert_one_line(got, 2, r"no data set 'picture' in .*Prepared there: pictures\. Did you mean 'pictures'\?")
    got = train_on(program, tmp_path, data__label_key="lable")
    assert_one_line(got, 2, r"pictures has no feature 'lable'\. Did you mean 'label'\? It has: ")
    got = train_on(program, tmp_path, data__name="fashion_mnist")
    assert_one_line(got, 2, r"no data set 'fashion_mnist'.*python -m recvis_jax\.prepare --dataset=fashion_mnist")
