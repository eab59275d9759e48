"""The model card of a run: what it is for, what it was measured to do, from which data and by which command.

Everything in it is read from the run's own files. It is Markdown with a head of YAML, as the Hugging Face hub shows it;
its sections follow Mitchell et al. 2019, "Model cards for model reporting".
"""

import json
from pathlib import Path
from typing import Any

from recvis_jax import errors, evidence, trained, trees
from recvis_jax.training import log

# What the authors of data sets that are known by name say of their licence.
LICENCES = {
    "digits": "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
    "fashion_mnist": "MIT",
    "fashion_scenes": "MIT (made from Fashion-MNIST)",
    "mnist": "not stated by its authors",
    "cifar10": "not stated by its authors",
    "cifar100": "not stated by its authors",
    "imagenet2012": "non-commercial research and education only (ImageNet's terms of access)",
    "caltech101": "CC BY 4.0",
    "coco/2017": "annotations CC BY 4.0; the photographs keep the terms of Flickr",
    "voc/2007": "the photographs keep the terms of Flickr",
    "deepforest": "MIT",
    "libreoffice_de": "MPL-2.0",
    "bible_es": "public domain",
}
# What a task gives -> the hub's word for it.
_PIPELINES = {
    "classes": "image-classification", "boxes": "object-detection", "map": "image-segmentation",
    "other": "image-feature-extraction",
}  # fmt: skip
_MOST_CLASSES = 1000  # that are named
# Keys of the config that say where the run was computed, not what.
_PLACES = ("checkpoint_dir", "sharding", "compile")
_DATA_PLACES = ("data_dir", "cache", "threads", "workers")


def of_run(model: trained.Trained, folder: Path) -> str:
    """Returns the card of a checkpoint.

    Args:
      model: the checkpoint.
      folder: of its run.

    Raises:
      BadRequest: a file of the run is damaged.
    """
    found = evidence.read(folder)
    results = measured(found.summary, model.name, model.step)
    parts = [_head(model, results), _summary(model), _use(model), _results(model, results), _data(model)]
    return "\n\n".join([*parts, _making(model, found), _limits(model, results)]) + "\n"


def measured(summary: dict[str, Any], name: str, step: int) -> dict[str, dict[str, float]]:
    """Returns {split: {metric: value}} of a checkpoint from the summary of a run, as training and evaluate wrote it.

    Example:
      >>> later = {"test": {"last": {"step": 8, "AP": 1}}}
      >>> measured({"final": {"step": 8, "val": {"loss": 1.5}}, "evaluations": later}, "last", 8)
      {'val': {'loss': 1.5}, 'test': {'AP': 1}}
    """
    out: dict[str, dict[str, float]] = {}

    def add(split: str, values: Any) -> None:
        if isinstance(values, dict):
            numbers = {k: v for k, v in values.items() if evidence.is_number(v) and k != "step"}
            out.setdefault(split, {}).update(numbers)

    for part in (summary.get("final"), summary.get("best")):
        if isinstance(part, dict) and part.get("step") == step:
            for split, values in part.items():
                add(split, values)
    later = summary.get("evaluations")
    for split, by_name in later.items() if isinstance(later, dict) else ():
        values = by_name.get(name) if isinstance(by_name, dict) else None
        if isinstance(values, dict) and values.get("step") == step:
            add(split, values)
    return {split: values for split, values in out.items() if values}


def _named(model: trained.Trained) -> str:
    return (model.config.get("model") or {}).get("name", type(model.run.model).__name__)


def _head(model: trained.Trained, results: dict[str, dict[str, float]]) -> str:
    """Returns the YAML, in JSON's notation of strings, which YAML shares."""
    known = model.run.data.info
    kind = "translation" if known.vocabulary else _PIPELINES.get(model.run.task.gives, "image-feature-extraction")
    lines = [
        "library_name: recvis_jax",
        f"pipeline_tag: {kind}",
        "tags:",
        "- jax",
        "- flax",
        f"- {_text(_named(model))}",
    ]
    lines += ["datasets:", f"- {_text(known.name)}"]
    if shown := [(s, k, v) for s, values in results.items() for k, v in values.items() if s in ("val", "test")]:
        lines += ["model-index:", f"- name: {_text(_named(model))}", "  results:"]
        for split in dict.fromkeys(s for s, _, _ in shown):
            lines += [f"  - task: {{type: {kind}}}", f"    dataset: {{name: {_text(known.name)}, type: "
                      f"{_text(known.name)}, split: {_text(split)}}}", "    metrics:"]  # fmt: skip
            lines += [f"    - {{type: {_text(k)}, value: {v!r}}}" for s, k, v in shown if s == split]
    return "\n".join(["---", *lines, "---"])


def _text(value: str) -> str:
    return json.dumps(errors.printable(value), ensure_ascii=False)


def _summary(model: trained.Trained) -> str:
    known, count = model.run.data.info, trees.count(model.params)
    h, w, c = known.image_shape
    gives = {
        "classes": f"{'any' if known.multi_label else 'one'} of {known.num_classes} classes",
        "numbers": "a number", "boxes": f"boxes of objects of {known.num_classes} classes",
        "map": "the class of every pixel", "other": "features; it was trained without labels",
    }[model.run.task.gives]  # fmt: skip
    takes = "texts" if known.vocabulary else f"images of {h}x{w} pixels and {c} channel{'s' if c > 1 else ''}"
    gives = "translations" if known.vocabulary else gives
    source = _origin(model)
    return (
        f"# {errors.printable(_named(model))} on {errors.printable(known.name)}\n\n"
        f"A network of class {type(model.run.model).__name__} with {count:,} parameters, trained by recvis_jax. From "
        f"{takes} it gives {gives}. This is checkpoint '{errors.printable(model.name)}', of step {model.step:,}."
        + (f" It was initialised from `{source}`." if source else "")
    )


def _origin(model: trained.Trained) -> str:
    given = model.config.get("init_from")
    given = given.get("source") if isinstance(given, dict) else given
    if not isinstance(given, str) or not given:
        return ""
    return errors.printable(given if "://" in given else Path(given).name)


def _use(model: trained.Trained) -> str:
    known, gives = model.run.data.info, model.run.task.gives
    call = {"boxes": "run.detect(images)", "map": "run.detect(images)", "other": "run.features(images)"}.get(
        gives, "run.predict(images)"
    )
    call = 'run.translate(["a text"])' if known.vocabulary else call
    program = "generate --workdir=FOLDER 'a text'" if known.vocabulary else "predict --weights=FOLDER photo.jpg"
    if gives == "other" and not known.vocabulary:
        program = "features --workdir=FOLDER --layers=features --out=features.npz photo.jpg"
    prepared = "" if known.vocabulary else (
        f"\n\nThe programs prepare pictures by `{known.eval_transform or f'resize({known.image_shape[:2]})'}`; `run` "
        f"takes uint8 images (n, {', '.join(map(str, known.image_shape))}) that are prepared so, and normalises them "
        "itself."
    )  # fmt: skip
    python = f'```python\nimport recvis_jax as rv\n\nrun = rv.open("FOLDER")  # this folder\n{call}\n```'
    return f"## How to use it\n\n{python}\n\n```shell\npython -m recvis_jax.{program}\n```{prepared}"


def _results(model: trained.Trained, results: dict[str, dict[str, float]]) -> str:
    if not results:
        return "## Results\n\nNone is recorded for this checkpoint: `python -m recvis_jax.evaluate` measures it."
    splits = model.run.data.info.splits
    rows = [
        f"| {errors.printable(split)} | {splits[split].examples if split in splits else ''} | {name} | {value:.6g} |"
        for split, values in results.items() for name, value in values.items()
    ]  # fmt: skip
    return "\n".join(["## Results\n", "| split | examples | metric | value |", "|---|---|---|---|", *rows])


def _data(model: trained.Trained) -> str:
    known = model.run.data.info
    rows = [f"| {n} | `{errors.printable(s.split)}` | {s.examples:,} | `{s.digest}` |" for n, s in known.splits.items()]
    licence = LICENCES.get(known.name, "not known to the program; its author has to state it")
    lines = [
        f"## Data\n\n{errors.printable(known.name)}. Licence: {licence}.\n",
        "| split | of the data set | examples | digest |", "|---|---|---|---|", *rows,
    ]  # fmt: skip
    if known.class_names:
        names = ", ".join(map(errors.printable, known.class_names[:_MOST_CLASSES]))
        lines += ["", f"Classes: {names}{' ...' if len(known.class_names) > _MOST_CLASSES else ''}."]
    return "\n".join(lines)


def _making(model: trained.Trained, found: evidence.Records) -> str:
    lines = ["## How it was made", ""]
    for life in found.lives:
        words = errors.printable(life.get("command") or "a script of the author's own, by recvis_jax.fit")
        lines += [f"```shell\n{words}\n```", ""]
        facts = ("recvis_jax", "commit", "jax", "python", "devices", "cpu")
        said = ", ".join(f"{k} {errors.printable(life[k])}" for k in facts if life.get(k))
        lines += [f"On {errors.printable(life.get('began', 'an unknown day'))}: {said}.", ""]
    seconds = found.summary.get("seconds")
    lines += [f"Training took {seconds:,.0f} s.", ""] if evidence.is_number(seconds) else []
    config = json.dumps(log.plain_json(portable(found.config)), indent=2)
    return "\n".join([*lines, f"<details><summary>The whole config</summary>\n\n```json\n{config}\n```\n\n</details>"])


def _limits(model: trained.Trained, results: dict[str, dict[str, float]]) -> str:
    known, gives = model.run.data.info, model.run.task.gives
    held = [s for s in ("test", "val") if s in results]
    lines = [
        f"## Intended use and limits\n\n* It is meant for data like {errors.printable(known.name)}: of others, and of "
        "pictures that were taken or prepared in another way, nothing was measured.",
    ]
    if gives in ("classes", "boxes", "map") and known.num_classes:
        lines.append(
            f"* It knows its {known.num_classes} classes and no others; whatever it is shown, it answers with one."
        )
        lines.append("* Its probabilities were not calibrated.")
    if not held:
        lines.append("* No result on examples that it was not trained on is recorded.")
    elif held == ["val"]:
        lines.append("* Its results are of the validation split, by which the checkpoint may have been chosen.")
    lines.append("* Whether it treats groups of people or places alike was not examined.")
    lines.append("* The licence of these weights is for their author to state, as `license:` in the head of this file.")
    return "\n".join(lines)


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config without what tells of the machine; of files of weights only the names are kept.

    Example:
      >>> portable({"steps": 3, "data": {"name": "digits", "data_dir": "/home/me"}, "init_from": "/home/me/a.npz"})
      {'steps': 3, 'data': {'name': 'digits'}, 'init_from': 'a.npz'}
    """
    out = {k: v for k, v in config.items() if k not in _PLACES}
    out["data"] = {k: v for k, v in (out.get("data") or {}).items() if k not in _DATA_PLACES}
    given = out.get("init_from")
    if isinstance(given, str):
        out["init_from"] = _name(given)
    elif isinstance(given, dict) and isinstance(given.get("source"), str):
        out["init_from"] = {**given, "source": _name(given["source"])}
    return out


def _name(source: str) -> str:
    return source if "://" in source else Path(source).name
