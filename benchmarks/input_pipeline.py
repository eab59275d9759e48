"""Does the input pipeline keep up with the step? Fashion-MNIST, batches of 256, both sides interleaved.

  python benchmarks/input_pipeline.py [--seconds=50] [--models=lenet5,resnet20]

For each cache: images a second that the pipeline delivers onto the device on its own, augmentation included, against
images a second that the training step consumes when its batch is there already. A ratio above 1 means that the step
never waits. Then the proof in place: by which share of its time a loop over batches takes longer than one that has its
batch already, both some steps ahead of the device as training is; cached data may cost 3 %. On CPUs the pipeline works
on the processors of the step, and that is in it. A few percent are less than what others on the machine do to one pair:
so pairs are short and many, and their quartiles are given. The figures depend on the machine.
"""

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import sides
from absl import flags

from recvis_jax import cli

_SECONDS = flags.DEFINE_float("seconds", 50.0, "Time of a row, in interleaved measurements of all sides.")
_MODELS = flags.DEFINE_list("models", ["lenet5", "resnet20"], "Models that consume.")
BATCH = 256
AHEAD = 4  # steps, as `training.loop`
LEAST = 0.2  # seconds of a measurement


def timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(model: str, cache: str, seconds: float) -> dict[str, Any]:
    """Returns images a second of the pipeline and of the step, their ratio, and the share of a loop for input."""
    import jax

    from recvis_jax import build
    from recvis_jax.training import distributed
    from recvis_jax.training.step import make_train_step

    data = dict(name="fashion_mnist", augment="pad_crop(2)|flip", statistics="fashion_mnist", test=None, cache=cache)
    optim = dict(name="momentum", lr=0.01, schedule="constant")
    run = build.make_run(data=data, model={"name": model}, optim=optim, steps=10**6, batch_size=BATCH)
    step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
    augment, key = jax.jit(run.data.augment), jax.random.key(0)
    batches, state = build.train_batches(run, 0), run.create()
    held = distributed.jit_placement(run.mesh).put(next(batches))  # from one CPU's cache it comes in numpy

    def train(among: Iterable[Any]) -> None:
        nonlocal state
        pending: deque[Any] = deque()
        for batch in among:
            state, metrics = step(state, batch)
            pending.append(metrics)
            if len(pending) > AHEAD:
                jax.block_until_ready(pending.popleft())
        jax.block_until_ready(state)

    def produce(n: int) -> None:
        for batch in itertools.islice(batches, n):
            jax.block_until_ready(augment(key, batch))

    actions = {
        "made": produce,
        "used": lambda n: train(itertools.repeat(held, n)),
        "loop": lambda n: train(itertools.islice(batches, n)),
    }
    for action in actions.values():  # compiles
        action(2)
    n = math.ceil(LEAST / (timed(lambda: actions["used"](4)) / 4))
    times: dict[str, list[float]] = {name: [] for name in actions}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, action in actions.items():
            times[name].append(timed(lambda action=action: action(n)))
    found = sides.ratio(times["used"], times["made"])
    kept = sides.ratio(times["used"], times["loop"])
    made, used = (n * BATCH / statistics.median(times[name]) for name in ("made", "used"))
    costs = {"costs": 1 - kept["ratio"], "costs_spread": [1 - kept["spread"][1], 1 - kept["spread"][0]]}
    return {**found, "pipeline": made, "step": used, **costs, "pairs": len(times["loop"])}


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    print(cli.about_jax(settings=True))
    rows = []
    for model, cache in itertools.product(_MODELS.value, ("device", "host", "none")):
        row = dict(name=f"{model}, cache {cache}", target=1.0, costs_target=None if cache == "none" else 0.03)
        rows.append(row | measure(model, cache, _SECONDS.value) | dict(load=sides.load()))
        row = rows[-1]
        print(f"{row['name']}: {row['pipeline']:,.0f} / {row['step']:,.0f} images a second", flush=True)
    columns = {
        "": "{name}",
        "pipeline / step": "{ratio:,.1f}",
        "target": "{target:.0f}",
        "pipeline, images/s": "{pipeline:,.0f}",
        "step, images/s": "{step:,.0f}",
        "a loop takes longer by": "{costs:.1%} ({costs_spread[0]:.1%} to {costs_spread[1]:.1%}, {pairs} pairs)",
        "at most": "{costs_target:.0%}",
    }
    sides.save("input_pipeline", rows, columns)


if __name__ == "__main__":
    cli.run(main)
