"""Our side of the benchmarks: compiled steps of recvis_jax, as its programs run them. See `sides`."""

from collections.abc import Callable
from typing import Any

import sides

from recvis_jax import cli

_STATE: dict[str, Any] = {}


def about() -> str:
    return cli.about_jax(settings=True)


def version() -> str:
    """Returns the version of JAX, as 0.12."""
    import jax

    return ".".join(jax.__version__.split(".")[:2])


def gemm(size: int = 2048, least: float = 1.0) -> float:
    """Returns the FLOPs a second of a float32 matrix product."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size))
    product = jax.jit(jnp.dot)
    product(a, a).block_until_ready()
    return 2 * size**3 / sides.timed(lambda: product(a, a).block_until_ready(), least)["wall"]


def onednn() -> bool:
    """Whether large products and convolutions are oneDNN's."""
    from recvis_jax.kernels import onednn

    return onednn.available()


def prepare(model: dict[str, Any], task: str, optim: str, batch: int, size: int, train: bool) -> dict[str, float]:
    """Makes what `measure` measures; see `make_work`."""
    _STATE["work"], found = make_work(model, task, optim, batch, size, train)
    return found


def make_training(model: dict[str, Any], task: str, optim: str, batch: int, size: int) -> tuple[Any, Any]:
    """Returns a run as `build.make_run` makes it, and a batch of made-up uint8 images of `size` x `size`."""
    from recvis_jax import build
    from recvis_jax.training import distributed

    name = {28: "fashion_mnist", 32: "cifar10"}.get(size, "imagenet2012")
    statistics = name.replace("2012", "")
    data: dict[str, Any] = dict(name=name, mock=batch, train="train", test=None, statistics=statistics)
    if name == "imagenet2012":
        data["transform"] = f"resize_crop({size}, resize={max(256, size)})"
    optimizer: dict[str, Any] = {
        "sgd": dict(name="momentum", lr=0.01, schedule="constant"),
        "adamw": dict(name="adamw", lr=1e-4, weight_decay=0.05, schedule="constant"),
    }[optim]
    run = build.make_run(
        data=data, model=model, task={"name": task}, optim=optimizer, steps=10**6, batch_size=batch, seed=0
    )
    return run, distributed.jit_placement(run.mesh).put(next(build.train_batches(run, 0)))


def make_work(
    model: dict[str, Any], task: str, optim: str, batch: int, size: int, train: bool
) -> tuple[Callable[[], None], dict[str, float]]:
    """Compiles a training step, or a forward pass in evaluation, on uint8 images of `size` x `size`.

    Returns:
      Work, one step or pass; and the number of `parameters` and the theoretical `flops` of a batch.
    """
    import jax

    from recvis_jax.planning import flops
    from recvis_jax.training.step import make_train_step

    run, data_batch = make_training(model, task, optim, batch, size)
    state = run.create()
    shaped = jax.eval_shape(run.data.augment, jax.random.key(0), data_batch)
    total = flops.model_flops(run.task, jax.eval_shape(lambda: state), shaped)
    found = {"parameters": sum(p.size for p in jax.tree.leaves(state.params)), "flops": total if train else total // 3}
    if train:
        step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)

        def work() -> None:
            nonlocal state
            state, metrics = step(state, data_batch)
            jax.block_until_ready(metrics)
    else:

        def forward(state: Any, images: Any) -> Any:
            image = run.data.preprocess({"image": images})["image"]
            return run.model.apply({"params": state.params, **state.model_state}, image, train=False)[0]

        compiled = jax.jit(forward)

        def work() -> None:
            jax.block_until_ready(compiled(state, data_batch["image"]))

    work(), work()
    return work, found


def prepare_jpeg(folder: str, images: int) -> None:
    """Streams a folder of JPEGs through the pipeline: 224x224 crops, normalised on the device, batches of 64."""
    import itertools

    import jax

    from recvis_jax import build
    from recvis_jax.data import builders

    target = f"{folder}.prepared"
    builders.prepare("folder", target, folder, folder_name="photographs", say=lambda line: None)
    data = dict(name="photographs", data_dir=target, train="train", test=None, cache="none", threads=2)
    data |= dict(transform="random_resized_crop(224)|flip", statistics="imagenet")
    optim = dict(name="momentum", lr=0.1, schedule="constant")
    run = build.make_run(data=data, model={"name": "linear"}, optim=optim, steps=10**6, batch_size=64)
    batches, augment = build.train_batches(run, 0), jax.jit(run.data.augment)
    key = jax.random.key(0)

    def work() -> None:
        for batch in itertools.islice(batches, images // 64):
            jax.block_until_ready(augment(key, batch))

    work()
    _STATE["work"] = work


def prepare_epoch(images: int) -> str:
    """Trains LeNet-5 on Fashion-MNIST, an epoch a piece of work; returns a file with the raw images and labels."""
    import itertools

    import jax

    from recvis_jax import build
    from recvis_jax.training.step import make_train_step

    data = dict(name="fashion_mnist", train=f"train[:{images}]", test=None, statistics="fashion_mnist")
    data["augment"] = "pad_crop(2)|flip"
    optim = dict(name="momentum", lr=0.01, schedule="constant")
    run = build.make_run(data=data, model={"name": "lenet5"}, optim=optim, steps=10**6, batch_size=256)
    step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
    batches, state = build.train_batches(run, 0), run.create()

    def work() -> None:
        nonlocal state
        for batch in itertools.islice(batches, images // 256):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    work()
    _STATE["work"] = work
    return _file(run.data.train)


def prepare_speedrun(seed: int) -> dict[str, Any]:
    """Makes the training of `configs/fashion_mnist/speedrun.py`; `epoch` trains one, `accuracy` ends it.

    Returns:
      train, test: files with the images, for the other side; epochs: how many there are.
    """
    import importlib.util
    from pathlib import Path

    from recvis_jax import build
    from recvis_jax.training.step import make_train_step

    file = Path(__file__).parents[1] / "configs/fashion_mnist/speedrun.py"
    spec = importlib.util.spec_from_file_location("speedrun_config", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config().to_dict()
    keys = ("data", "model", "optim", "task", "epochs", "batch_size", "eval_batch_size", "ema_decay")
    run = build.make_run(**{k: config[k] for k in keys}, seed=seed)
    step = make_train_step(
        run.task, run.optimizer, augment=run.data.augment, ema_decay=config["ema_decay"], shardings=run.shardings
    )
    test = run.data.test
    _STATE.update(run=run, step=step, state=run.create(), batches=build.train_batches(run, 0), test=test)
    return {"train": _file(run.data.train), "test": _file(test), "epochs": round(config["epochs"])}


def epoch() -> float:
    """Trains an epoch of the speedrun; returns its seconds, in the first one with compilation."""
    import itertools
    import time

    import jax

    start = time.perf_counter()
    for batch in itertools.islice(_STATE["batches"], int(_STATE["run"].steps_per_epoch)):
        _STATE["state"], metrics = _STATE["step"](_STATE["state"], batch)
    jax.block_until_ready(metrics)
    return time.perf_counter() - start


def accuracy() -> tuple[float, float]:
    """Returns the test accuracy of the speedrun, and the seconds that its evaluation took."""
    import time

    from recvis_jax import build
    from recvis_jax.evaluation import evaluator

    start, run = time.perf_counter(), _STATE["run"]
    metrics = {name: run.task.metrics[name] for name in ("loss", "accuracy")}
    evaluate = evaluator.make_evaluate(run.task.predict, metrics, run.data.preprocess, run.mesh)
    found = evaluate(*_STATE["state"].evaluated, build.eval_batches(run, _STATE["test"]))
    assert found
    return float(found["accuracy"]), time.perf_counter() - start


def _file(source: Any) -> str:
    """Returns a temporary file with the images and labels of a source, for the other side."""
    import tempfile

    import numpy as np

    from recvis_jax.data import pipeline

    kept = pipeline.materialise(source, None)
    with tempfile.NamedTemporaryFile(suffix=".npz", delete=False) as file:
        np.savez(file, image=kept.image, label=kept.label)
    return file.name


def prepare_evaluation(model: dict[str, Any]) -> str:
    """Evaluates a net on the test images of Fashion-MNIST, all of them a piece of work; returns a file with them."""
    from recvis_jax import build
    from recvis_jax.evaluation import evaluator

    data = dict(name="fashion_mnist", train="train[:1000]", test="test", statistics="fashion_mnist")
    optim = dict(name="momentum", lr=0.01, schedule="constant")
    run = build.make_run(data=data, model=model, optim=optim, steps=10**6, batch_size=100, eval_batch_size=500)
    source, state = run.data.test, run.create()
    metrics = {name: run.task.metrics[name] for name in ("loss", "accuracy")}
    evaluate = evaluator.make_evaluate(run.task.predict, metrics, run.data.preprocess, run.mesh)

    def work() -> None:
        evaluate(state.params, state.model_state, build.eval_batches(run, source))

    work()
    _STATE["work"] = work
    return _file(source)


def measure(least: float) -> dict[str, float]:
    return sides.timed(_STATE["work"], least)


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    prepares = (prepare, prepare_jpeg, prepare_epoch, prepare_evaluation, prepare_speedrun, epoch, accuracy)
    sides.serve({f.__name__: f for f in (about, version, gemm, onednn, *prepares, measure, sides.peak_memory)})


if __name__ == "__main__":
    cli.run(main)
