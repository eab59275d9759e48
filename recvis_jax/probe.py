"""Probes a trained model: how good are its features, by several protocols, in one table.

  python -m recvis_jax.probe --workdir=runs/mae --protocols=linear,knn,fewshot --layers=features
  python -m recvis_jax.probe --workdir=runs/mae --baselines=random,pixels --per_class=60,600,0
  python -m recvis_jax.probe --workdir=runs/mae --layers=pixels --protocols=svm,kernel_svm,forest
  python -m recvis_jax.probe --config=configs/x.py --config.init_from=hf://owner/repo --out=runs/x

linear is logistic regression, knn nearest neighbours, fewshot ridge regression on a few examples a class, svm a linear
support vector machine, kernel_svm one of the kernel that suits best (chi2, intersection, rbf), forest a random forest;
kernel_svm and forest are scikit-learn's. Of images of several classes each, as VOC's, linear and svm report the mean
average precision.

Features are written once to `features/` and reused. The table, and `probe.json`, are of the test split, or of what
--split names. Penalties and numbers of neighbours are chosen on the validation split; where that is what is reported,
or there is none, on a tenth of the training examples, so that nothing was fitted to the images that are reported on.
"""

import contextlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from recvis_jax import cli, columns, errors
from recvis_jax.config import define_flag, read

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this program."""
    define_flag("Instead of --workdir: a config whose init_from names the weights.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("out", None, "Folder to write to; by default that of the run.")
    flags.DEFINE_string("checkpoint", None, "best, last, a step, or random; by default the best.")
    flags.DEFINE_list(
        "protocols", ["linear", "knn", "fewshot"], "Which of linear, knn, fewshot, svm, kernel_svm, forest."
    )
    flags.DEFINE_list("layers", ["features"], "Names of intermediates; a wrong one is answered with all of them.")
    flags.DEFINE_string("pool", "mean", "Of tokens or maps: mean, max, first, rest, first_rest, flatten.")
    flags.DEFINE_list("baselines", [], "Further rows: random (the same layers, untrained) and pixels.")
    flags.DEFINE_list("per_class", ["0"], "Training examples of each class, several tables; 0 for all.")
    flags.DEFINE_integer("seeds", 3, "Draws of so many examples; the table has mean and deviation.", 1)
    flags.DEFINE_string(
        "split", None,
        "What is reported on: train, val or test as the run's config has them, or a split expression. "
        "By default test, or val where there is no test split.",
    )  # fmt: skip
    flags.DEFINE_string("dataset", None, "Another data set than the run's, for transfer.")
    flags.DEFINE_list("classes", None, "Numbers or names of the only classes probed, for transfer.")
    flags.DEFINE_list(
        "splits", None, "What train, val and test are, if not those of the run: two or three expressions."
    )
    flags.DEFINE_bool("overwrite", False, "Compute features again that are there.")
    flags.DEFINE_string("compile_cache", "default", "Folder of compiled programs; empty for none.")


def main(argv: list[str]) -> int:
    del argv
    if (FLAGS.workdir is None) == (FLAGS.config is None):
        raise errors.BadRequest("give one of --workdir=RUN and --config=FILE, as --workdir=runs/mae.")
    if not all(n.isascii() and n.isdecimal() for n in FLAGS.per_class):
        raise errors.BadRequest(f"--per_class takes numbers of examples, as 60,600,0, not {FLAGS.per_class}.")
    _check(FLAGS.protocols, FLAGS.layers, FLAGS.baselines, FLAGS.splits or ())
    cli.start_jax(FLAGS.compile_cache)
    probe(
        workdir=FLAGS.workdir,
        config=read(FLAGS["config"], "") if FLAGS.workdir is None else None,
        out=FLAGS.out,
        checkpoint=FLAGS.checkpoint,
        protocols=FLAGS.protocols,
        layers=FLAGS.layers,
        pool=FLAGS.pool,
        baselines=FLAGS.baselines,
        per_class=[int(n) for n in FLAGS.per_class],
        seeds=FLAGS.seeds,
        split=FLAGS.split,
        dataset=FLAGS.dataset,
        classes=[int(c) if c.isascii() and c.isdecimal() else c for c in FLAGS.classes or ()],
        splits=FLAGS.splits or (),
        overwrite=FLAGS.overwrite,
        say=cli.progress,
    )
    return 0


def probe(
    *,
    workdir: str | Path | None = None,
    config: dict[str, Any] | None = None,
    out: str | Path | None = None,
    checkpoint: str | None = None,
    protocols: Sequence[str] = ("linear", "knn", "fewshot"),
    layers: Sequence[str] = ("features",),
    pool: str = "mean",
    baselines: Sequence[str] = (),
    per_class: Sequence[int] = (0,),
    seeds: int = 3,
    split: str | None = None,
    dataset: str | None = None,
    classes: Sequence[int | str] = (),
    splits: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[dict[str, Any]]:
    """Probes a model; prints the tables, writes `probe.json`, and returns its records.

    Args:
      workdir, config: one of the two: the folder of a run, or a config as plain dicts whose `init_from` names weights.
      out: folder to write to; None for that of the run.
      checkpoint: 'best', 'last', a step or 'random'; None for the best.
      protocols: names of `evaluation.probes.PROTOCOLS`.
      layers: names of intermediates.
      pool: see `models.layer_head.pooled`.
      baselines: further rows: 'random' and 'pixels'.
      per_class: training examples of each class, a table each; 0 for all.
      seeds: draws of so many examples.
      split: what is reported on; see `trained.open_named`. None for `trained.default_split`.
      dataset: another data set than the run's.
      classes: the only classes probed.
      splits: expressions that train, val and perhaps test stand for, if not those of the run.
      overwrite: computes features again that are there.
      say: called with (what, done, total).

    Raises:
      BadRequest: an unknown name, splits that are not there or share examples, too few examples, features that are
        damaged or of something else.
    """
    import numpy as np

    from recvis_jax import build, represent, trained
    from recvis_jax.evaluation import probes
    from recvis_jax.training import distributed, log

    _check(protocols, layers, baselines, splits)
    if not per_class or min(per_class) < 0 or seeds < 1:
        raise errors.BadRequest(f"per_class is {list(per_class)} and seeds is {seeds}; they start at 0 and 1.")
    for name in protocols:
        errors.choose(probes.PROTOCOLS, name, "protocol")
    model, folder = represent.open_either(
        None if workdir is None else str(workdir), config, None if out is None else str(out), checkpoint, say
    )
    data, suffix = model.run.data, ""
    if dataset or classes or splits:
        section = _section(model.config["data"], dataset, classes, splits)
        data = build.open_data(**section)
        suffix = "-" + "-".join(map(str, (section["name"], *section.get("classes", ()))))
    sources, note = _sources(data, split)
    print("  ".join(f"{name}: {errors.printable(s.name)}, {s.length:,}" for name, s in sources.items()), flush=True)
    if note:
        print(note, flush=True)
    info = sources["train"]
    labelled = any(field.name == "label" for field in info.fields)
    if info.num_classes < (1 if info.multi_label else 2) or not labelled:
        raise errors.BadRequest(
            f"probes need at least two classes, with one or several per image; {errors.printable(info.name)} has not."
        )
    if info.multi_label:
        probes.check(protocols, np.zeros((0, info.num_classes)), info.class_names, info.num_classes, max(per_class))

    def features(weights: Any, layers: Sequence[str]) -> dict[str, dict[str, probes.Set]]:
        """{layer: {split: Set}}"""
        found = {
            name: trained.write_features(
                weights, folder, s, name + suffix + _tag(splits, name), layers, pool,
                overwrite=overwrite, reuse=True, say=say,
            )
            for name, s in sources.items()
        }  # fmt: skip
        return {layer: {k: probes.Set(f[layer].values, f[layer].labels) for k, f in found.items()} for layer in layers}

    rows: list[tuple[str, str, dict[str, probes.Set]]] = []
    rows += [(f"{model.name} {model.step:,}", *r) for r in features(model, layers).items()]
    if "random" in baselines:
        other = (
            trained.of_config(config, "random")
            if config is not None and represent.SECTION not in config
            else trained.of_run(Path(workdir or folder), model.config, "random")
        )
        rows += [("random weights", *r) for r in features(other, layers).items()]
    if "pixels" in baselines and trained.PIXELS not in layers:
        rows += [("", *r) for r in features(model, [trained.PIXELS]).items()]

    reported = list(sources)[-1]
    ready = []
    for weights, layer, sets in rows:
        fit, chosen_on = probes.hold_out(sets["train"], info.num_classes) if note else (sets["train"], sets["val"])
        probes.check(protocols, fit.labels, info.class_names, info.num_classes, max(per_class))
        ready.append((weights, layer, (fit, chosen_on, sets[reported])))
    records: list[dict[str, Any]] = []
    for count in dict.fromkeys(per_class):
        table = {}
        for weights, layer, parts in ready:
            label = f"{layer} {f'({weights})' if weights else ''}".strip()

            def tell(protocol: str, done: int, total: int, label: str = label) -> None:
                say(f"{protocol} on {label}", done, total)

            found = probes.run(protocols, *parts, num_classes=info.num_classes, per_class=count, seeds=seeds, say=tell)
            row = {"weights": weights, "layer": layer, "pool": "" if layer == trained.PIXELS else pool}
            records += [{**row, "per_class": count, **r.record()} for r in found]
            table[label] = _by_column(found)
        n = count * info.num_classes or len(ready[0][2][0].labels)
        shown = {"val": "validation"}.get(reported, reported)
        metric = "mean average precision" if info.multi_label else "accuracy"
        what = "images" if info.multi_label else "labels"
        print(_show(f"{errors.printable(shown)} {metric}, {n:,} {what}", table), flush=True)
    if distributed.is_main():
        name = "probe" + suffix + ("" if split is None else f"-{reported}")
        where = folder / ("".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:150] + ".json")
        about = {
            "checkpoint": {"name": model.name, "step": model.step},
            "split": reported,
            "splits": {k: s.name for k, s in sources.items()},
            "chosen_on": note or "val",
        }
        log.write_json(where, {**about, "results": records})
        print(f"details: {where}")
    return records


def _check(protocols: Sequence[str], layers: Sequence[str], baselines: Sequence[str], splits: Sequence[str]) -> None:
    """Refuses what can be refused before JAX starts."""
    if unknown := set(baselines) - {"random", "pixels"}:
        raise errors.BadRequest(f"--baselines takes random and pixels, not {', '.join(sorted(unknown))}.")
    for name, given in (("protocols", protocols), ("layers", layers)):
        if not given or not all(given):
            raise errors.BadRequest(f"--{name} is empty; it takes one name or more, as --{name}={_FIRST[name]}.")
    if len(splits) not in (0, 2, 3) or not all(splits):
        raise errors.BadRequest(
            "--splits takes two or three expressions, for training, validation and test: train[:90%],train[90%:],test."
        )


_FIRST = {"protocols": "linear,knn", "layers": "features"}


def _section(
    data: dict[str, Any], dataset: str | None, classes: Sequence[int | str], splits: Sequence[str]
) -> dict[str, Any]:
    """Returns a config's data section with another data set, other classes or other splits."""
    from recvis_jax.data import sources

    section = dict(data)
    if dataset:
        section |= dict(name=dataset, train="train[:90%]", val="train[90%:]", test="test", classes=(), per_class=0)
        if not splits:
            with contextlib.suppress(sources.NoSplit):  # its own validation split, where it has one
                sources.open_split(dataset, "val", data_dir=section.get("data_dir"), mock=section.get("mock", 0))
                section |= dict(train="train", val="val")
    if classes:
        section["classes"] = list(classes)
    if splits:
        section |= dict(zip(("train", "val", "test"), (*splits, None)[:3], strict=True))
    return section


def _sources(data: Any, split: str | None) -> tuple[dict[str, Any], str]:
    """Returns the splits by name, the one that is reported on last, and what is chosen on where that is no split.

    Raises:
      BadRequest: the split that is reported on is not there, or shares examples with the training split.
    """
    from recvis_jax import trained
    from recvis_jax.data import sources

    apart = "--splits='train[:80%],train[80%:]' sets some of the training images apart"
    try:
        name = trained.canonical(split) if split else trained.default_split(data)
    except sources.NoSplit:
        raise errors.BadRequest(f"the run has neither a test nor a validation split; {apart}.") from None
    found = {"train": trained.open_named(data, "train")}
    reported = trained.open_named(data, name)
    if shared := sources.overlap(found["train"], reported):
        raise errors.BadRequest(
            f"--split={errors.printable(name)} shares {shared:,} examples with the training split; probes report on "
            f"examples that nothing was fitted to: {apart}."
        )
    val = trained.open_named(data, "val") if "val" in data.info.splits else None
    if val is not None and not sources.overlap(val, reported):
        return {**found, "val": val, name: reported}, ""
    return {**found, name: reported}, "penalties and k are chosen on a tenth of the training examples."


def _tag(splits: Sequence[str], split: str) -> str:
    """Tells features of other splits apart, in their files' names."""
    return "-" + dict(zip(("train", "val", "test"), splits, strict=False)).get(split, "") if splits else ""


def _by_column(results: list[Any]) -> dict[str, str]:
    """Returns 'mean ± deviation' in percent by the results' names; the deviation is that of the sample."""
    found: dict[str, list[float]] = {}
    for r in results:
        found.setdefault(r.name, []).append(100 * r.score)
    return {
        k: f"{statistics.mean(v):.2f}" + (f" ± {statistics.stdev(v):.2f}" if len(v) > 1 else "")
        for k, v in found.items()
    }


def _show(title: str, table: dict[str, dict[str, str]]) -> str:
    """Returns a Markdown table, rows by name, columns in the order of the first row."""
    names = list(dict.fromkeys(c for row in table.values() for c in row))
    return columns.markdown(
        [[title, *names], *([name.strip(), *(row.get(c, "") for c in names)] for name, row in table.items())]
    )


if __name__ == "__main__":
    cli.run(main, define_flags)
