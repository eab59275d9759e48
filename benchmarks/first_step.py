"""The time from the start of a process to the end of its first training step; a part of `startup.py`."""

import os
import time

from absl import flags

from recvis_jax import cli

_MODEL = flags.DEFINE_string("model", "vit_s16", "Which.")
_SCAN = flags.DEFINE_bool("scan", False, "Whether blocks are scanned.")
_BATCH = flags.DEFINE_integer("batch", 4, "Images of 224x224.")


def since_start() -> float:
    """Returns the seconds since this process was started."""
    ticks = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main(argv: list[str]) -> None:
    del argv
    cli.start_jax()
    import jax

    from recvis_jax import build
    from recvis_jax.training.step import make_train_step

    imported = since_start()
    data = dict(name="imagenet2012", mock=_BATCH.value, train="train", test=None, statistics="imagenet")
    data["transform"] = "resize_crop(224)"
    optim = dict(name="adamw", lr=1e-4, schedule="constant")
    model = dict(name=_MODEL.value, **({"scan": True} if _SCAN.value else {}))
    run = build.make_run(data=data, model=model, optim=optim, steps=10, batch_size=_BATCH.value)
    batch, state = next(build.train_batches(run, 0)), run.create()
    step = make_train_step(run.task, run.optimizer, augment=run.data.augment, shardings=run.shardings)
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    first = since_start()
    step(state, batch)
    print(imported, first)


if __name__ == "__main__":
    cli.run(main)
