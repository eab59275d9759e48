"""Probes a trained model: how good are its features, by several protocols, in one table.

  python -m recvis_jax.probe --workdir=runs/mae --protocols=linear,knn,fewshot --layers=features
  python -m recvis_jax.probe --workdir=runs/mae --baselines=random,pixels --per_class=60,600,0
  python -m recvis_jax.probe --config=configs/x.py --config.init_from=hf://owner/repo --out=runs/x

Features are written once to `features/` and reused. Penalties and numbers of neighbours are chosen on the validation
split; the table is of the test split, and of `probe.json`.
"""

import statistics
from pathlib import Path
from typing import Any

from absl import flags

from recvis_jax import cli, errors
from recvis_jax import config as configs

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    configs.define_flag("Instead of --workdir: a config whose init_from names the weights.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "Folder to write to; by default that of the run.")
    flags.DEFINE_string("checkpoint", None, "best, last, a step, or random; by default the best.")
    flags.DEFINE_list("protocols", ["linear", "knn", "fewshot"], "Which of linear, knn, fewshot.")
    flags.DEFINE_list("layers", ["features"], "Names of intermediates; a wrong one is answered with all of them.")
    flags.DEFINE_string("pool", "mean", "Of tokens or maps: mean, max, first, rest, first_rest, flatten.")
    flags.DEFINE_list("baselines", [], "Further rows: random (the same layers, untrained) and pixels.")
    flags.DEFINE_list("per_class", ["0"], "Training examples of each class, several tables; 0 for all.")
    flags.DEFINE_integer("seeds", 3, "Draws of so many examples; the table has mean and deviation.", 1)
    flags.DEFINE_string("dataset", None, "Another data set than the run's, for transfer; splits in --splits.")
    flags.DEFINE_list("classes", None, "Numbers or names of the only classes probed, for transfer.")
    flags.DEFINE_list("splits", None, "Training, validation and test split, if not those of the run.")
    flags.DEFINE_bool("overwrite", False, "Compute features again that are there.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if (FLAGS.workdir is None) == (FLAGS.config is None):
        raise errors.BadRequest("give one of --workdir=RUN and --config=FILE, as --workdir=runs/mae.")
    unknown = set(FLAGS.baselines) - {"random", "pixels"}
    if unknown:
        raise errors.BadRequest(f"--baselines takes random and pixels, not {', '.join(sorted(unknown))}.")
    if not all(n.isdecimal() for n in FLAGS.per_class):
        raise errors.BadRequest(f"--per_class takes numbers of examples, as 60,600,0, not {FLAGS.per_class}.")
    if FLAGS.splits and len(FLAGS.splits) != 3:
        raise errors.BadRequest("--splits takes three: training, validation, test, as train[:90%],train[90%:],test.")
    cli.start_jax(FLAGS.compile_cache)
    config = configs.read(FLAGS["config"], "") if FLAGS.workdir is None else None
    probe(config)
    return 0


def probe(config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Runs the protocols that the flags name; prints the table, writes `probe.json`, and returns its records."""
    from recvis_jax import build, trained
    from recvis_jax.evaluation import probes
    from recvis_jax.training import distributed, log

    model, folder = trained.open_either(FLAGS.workdir, config, FLAGS.out, FLAGS.checkpoint)
    data, suffix = model.run.data, ""
    if FLAGS.dataset or FLAGS.classes or FLAGS.splits:
        section = dict(model.config["data"])
        if FLAGS.dataset:
            section |= dict(name=FLAGS.dataset, train="train[:90%]", val="train[90%:]", test="test", classes=())
        if FLAGS.classes:
            section["classes"] = [int(c) if c.isdecimal() else c for c in FLAGS.classes]
        if FLAGS.splits:
            section |= dict(zip(("train", "val", "test"), FLAGS.splits, strict=True))
        data = build.open_data(**section)
        suffix = "-" + "-".join(map(str, (section["name"], *section.get("classes", ()))))
    sources = {split: trained.open_named(data, split) for split in ("train", "val", "test")}
    print("  ".join(f"{split}: {s.name}, {s.length:,}" for split, s in sources.items()), flush=True)

    def features(weights: Any, layers: list[str]) -> dict[str, dict[str, probes.Set]]:
        """{layer: {split: Set}}"""
        found = {
            split: trained.write_features(
                weights, folder, s, split + suffix + _tag(FLAGS.splits, split), layers, FLAGS.pool,
                overwrite=FLAGS.overwrite, reuse=True, say=cli.progress,
            )
            for split, s in sources.items()
        }  # fmt: skip
        return {layer: {k: probes.Set(f[layer].values, f[layer].labels) for k, f in found.items()} for layer in layers}

    rows: list[tuple[str, str, dict[str, probes.Set]]] = []
    rows += [(f"{model.name} {model.step:,}", *r) for r in features(model, FLAGS.layers).items()]
    if "random" in FLAGS.baselines:
        other = (
            trained.of_config(config, "random")
            if config is not None
            else trained.of_run(Path(FLAGS.workdir), model.config, "random")
        )
        rows += [("random weights", *r) for r in features(other, FLAGS.layers).items()]
    if "pixels" in FLAGS.baselines:
        rows += [("", *r) for r in features(model, [trained.PIXELS]).items()]

    records: list[dict[str, Any]] = []
    for count in dict.fromkeys(map(int, FLAGS.per_class)):
        table = {}
        for weights, layer, sets in rows:
            found = probes.run(
                FLAGS.protocols, *sets.values(), num_classes=data.info.num_classes, per_class=count,
                seeds=FLAGS.seeds,
            )  # fmt: skip
            pool = "" if layer == trained.PIXELS else FLAGS.pool
            records += [
                {"weights": weights, "layer": layer, "pool": pool, "per_class": count, **r._asdict()} for r in found
            ]
            table[f"{layer} {f'({weights})' if weights else ''}"] = _by_column(found)
        n = count * data.info.num_classes or sources["train"].length
        print(_show(f"test accuracy, {n:,} labels", table), flush=True)
    if distributed.is_main():
        where = folder / f"probe{suffix}.json"
        about = {
            "checkpoint": {"name": model.name, "step": model.step},
            "splits": {k: s.name for k, s in sources.items()},
        }
        log.write_json(where, {**about, "results": records})
        print(f"details: {where}")
    return records


def _tag(splits: list[str] | None, split: str) -> str:
    """Tells features of other splits apart, in their files' names."""
    return "" if not splits else "-" + splits[("train", "val", "test").index(split)]


def _by_column(results: list[Any]) -> dict[str, str]:
    """Returns 'mean ± deviation' in percent by the results' names; the deviation is that of the sample."""
    columns: dict[str, list[float]] = {}
    for r in results:
        columns.setdefault(r.name, []).append(100 * r.accuracy)
    return {
        k: f"{statistics.mean(v):.2f}" + (f" ± {statistics.stdev(v):.2f}" if len(v) > 1 else "")
        for k, v in columns.items()
    }


def _show(title: str, table: dict[str, dict[str, str]]) -> str:
    """Returns a Markdown table, rows by name, columns in the order of the first row."""
    columns = list(dict.fromkeys(c for row in table.values() for c in row))
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name.strip(), *(row.get(c, "") for c in columns)] for name, row in table.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
