"""Does the input pipeline keep up with the step? Fashion-MNIST, batches of 256, both sides interleaved.

  python benchmarks/input_pipeline.py [--repeats=5] [--models=lenet5,resnet20]

For each cache: images a second that the pipeline delivers onto the device on its own, augmentation included, against
images a second that the training step consumes when its batch is there already. A ratio above 1 means that the step
never waits. Then the proof in place: the share of a real loop's time in which it waits for a batch, of which cached
data may take 3 %. The ratios are what counts; the figures depend on the machine.
"""

import itertools
import statistics
import time
from collections.abc import Callable

import sides
from absl import flags

from recvis_jax import cli

_REPEATS = flags.DEFINE_integer("repeats", 5, "Interleaved measurements of each side.")
_MODELS = flags.DEFINE_list("models", ["lenet5", "resnet20"], "Models that consume.")
_BATCHES = flags.DEFINE_integer("batches", 12, "Batches a measurement.")
BATCH = 256


def timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(model: str, cache: str, repeats: int, n: int) -> tuple[float, float, float, float]:
    """Returns images a second of the pipeline and of the step, their ratio, and the share of waiting in a loop."""
    import jax

    from recvis_jax import build
    from recvis_jax.training import step as steps_of

    data = dict(name="fashion_mnist", augment="pad_crop(2)|flip", statistics="fashion_mnist", test=None, cache=cache)
    optim = dict(name="momentum", lr=0.01, schedule="constant")
    run = build.make_run(data=data, model={"name": model}, optim=optim, steps=10**6, batch_size=BATCH)
    step = steps_of.make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
    augment, key = jax.jit(run.data.augment), jax.random.key(0)
    batches, state, waits = build.train_batches(run, 0), run.create(), 0.0
    held = next(batches)

    def produce() -> None:
        for batch in itertools.islice(batches, n):
            jax.block_until_ready(augment(key, batch))

    def consume() -> None:
        nonlocal state
        for _ in range(n):
            state, _ = step(state, held)
        jax.block_until_ready(state)

    def loop() -> None:
        nonlocal state, waits
        for _ in range(n):
            start = time.perf_counter()
            batch = jax.block_until_ready(next(batches))
            waits += time.perf_counter() - start
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)

    for action in (produce, consume, loop):  # compiles
        action()
    waits = 0.0
    times = [(timed(produce), timed(consume), timed(loop)) for _ in range(repeats)]
    made, used = (n * BATCH / statistics.median(t[i] for t in times) for i in (0, 1))
    ratio = statistics.median(t[1] / t[0] for t in times)
    return made, used, ratio, waits / sum(t[2] for t in times)


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    print(cli.about_jax())
    rows = []
    for model, cache in itertools.product(_MODELS.value, ("device", "host", "none")):
        made, used, ratio, share = measure(model, cache, _REPEATS.value, _BATCHES.value)
        row = dict(name=f"{model}, cache {cache}", ratio=ratio, target=1.0, pipeline=made, step=used, waits=share)
        rows.append(row | dict(waits_target=None if cache == "none" else 0.03, load=sides.load()))
        print(f"{rows[-1]['name']}: {made:,.0f} / {used:,.0f} images a second, waits {share:.1%}", flush=True)
    columns = {
        "": "{name}",
        "pipeline / step": "{ratio:,.1f}",
        "target": "{target:.0f}",
        "pipeline, images/s": "{pipeline:,.0f}",
        "step, images/s": "{step:,.0f}",
        "a real loop waits": "{waits:.1%}",
        "at most": "{waits_target:.0%}",
    }
    sides.save("input_pipeline", rows, columns)


if __name__ == "__main__":
    cli.run(main)
