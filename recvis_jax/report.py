"""Writes a page of one run, or of several side by side: a single file that opens in any browser and can be shared.

    python -m recvis_jax.report runs/lenet5
    python -m recvis_jax.report runs/lenet5 runs/resnet20 --out=compared.html

It shows what was run, curves, a diagnosis in words, confusions, classes, predictions (the worst, the most confident
wrong ones, and random ones), throughput and cost. Predictions need the run's data set; without it, the page says so and
shows the rest. The page has no scripts and loads nothing from elsewhere. Training writes it at its end.
"""

from pathlib import Path

from absl import flags

from recvis_jax import cli, errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    flags.DEFINE_string(
        "out", None, "The page: by default report.html in the run's folder; for several runs, in the working directory."
    )
    flags.DEFINE_string("checkpoint", None, "best, last or a step. By default the best, or the last.")
    flags.DEFINE_string("data_dir", None, "Folder of the data, if not the one that the runs used.")
    flags.DEFINE_integer("examples", 10_000, "Maximum number of examples of a split for predictions.", 1)
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise errors.BadRequest("no run is given; for example: python -m recvis_jax.report runs/lenet5")
    folders = [Path(name).expanduser().absolute() for name in argv[1:]]
    for folder in folders:  # early, before JAX starts
        if not (folder / "config.json").exists():
            raise errors.BadRequest(f"{errors.printable(folder)} is not the folder of a run: it has no config.json.")
    if twice := next((f for i, f in enumerate(folders) if f in folders[:i]), None):
        raise errors.BadRequest(f"{errors.printable(twice)} is given twice.")
    cli.start_jax(FLAGS.compile_cache)
    from recvis_jax import reporting

    out = Path(FLAGS.out).expanduser() if FLAGS.out else (folders[0] if len(folders) == 1 else Path()) / reporting.FILE
    page = reporting.of_runs(folders, FLAGS.checkpoint, FLAGS.data_dir, FLAGS.examples, cli.progress)
    reporting.write(page, out)
    print(f"{errors.printable(out)}: {len(page.encode()) / 1e6:.2f} MB; open it in a browser")


main.takes_arguments = True  # type: ignore[attr-defined]

if __name__ == "__main__":
    cli.run(main, define_flags)
