"""An opened data set: its splits and the preparation of their examples; see `open_data` and `data.arrays`."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from recvis_jax import errors
from recvis_jax.data import augment, data_info, pipeline, sources, subset, texts, transforms
from recvis_jax.data.buckets import Buckets, as_key, check, of_source
from recvis_jax.data.fields import Field
from recvis_jax.data.windows import labelled


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run; made by `assemble`.

    Attributes:
      info: what is known of the data without reading them.
      train, val: sources; val may be None. Both are None in a run opened from its record: there `named` opens them.
      open: split expression -> source of the same data set.
      named: "train", "val" or "test" -> the source that the config assigns to it, None without such a split.
      test_split: split expression of the test split, which is opened on request; may be None.
      transform: `f(rng, example) -> example` of training on the host, or None.
      random: whether `transform` draws random numbers.
      eval_transform: the same for evaluation.
      augment: (key, batch) -> batch on the device, normalised; for training.
      preprocess: batch -> batch on the device, normalised; for evaluation.
      denormalise: normalised images -> images in [0, 1], for figures.
      image_shape: (h, w, c) of a model's input in training.
      cache: resolved cache of the training data.
      threads, workers: for reading.
      section: the arguments of `open_data` that opened it; None for arrays.
      edges: (field, lengths that it is padded to) if examples are grouped into buckets of length.
    """

    info: data_info.DataInfo
    train: sources.Source | None
    val: sources.Source | None
    open: Callable[[str], sources.Source]
    named: Callable[[str], sources.Source | None]
    test_split: str | None
    transform: Callable | None
    random: bool
    eval_transform: Callable | None
    augment: Callable
    preprocess: Callable
    denormalise: Callable
    image_shape: tuple[int, int, int]
    cache: str
    threads: int
    workers: int
    section: dict[str, Any] | None = None
    edges: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def buckets(self, source: sources.Source | None) -> Buckets | None:
        """Returns the buckets of a split, None without `edges`; its examples are read once for their lengths."""
        return of_source(source, self.edges) if source and self.edges else None

    def batches(
        self, batch_size: int, *, steps: int | None = None, epochs: float | None = None, seed: int = 0, start: int = 0
    ) -> Iterator[pipeline.Batch]:
        """Yields training batches on the devices, augmented and normalised.

        Batch i is a function of (seed, i) alone, so `start` may be any number. Data that `cache` keeps in memory are
        read at the first call, and stay there.

        Args:
          batch_size: examples per batch, over all devices.
          steps, epochs: the number of batches, by one of the two; one epoch by default.
          seed: for the order and for the draws of augmentation.
          start: number of the first batch.

        Returns:
          Batches of the data's fields, such as {"image": (b h w c), "label": (b)}, with "mask" (b) bool and "slot" (b),
          and "NAME_mask" (b n) for each padded field.

        Raises:
          BadRequest: an invalid length, or a batch that cannot be divided among the devices.
        """
        import jax

        from recvis_jax.training import distributed, sharding

        mesh = sharding.make_mesh()
        distributed.check_batch(batch_size, 1, mesh.size, "batch_size")
        total = length(self, batch_size, steps, 1 if steps is None and epochs is None else epochs)
        assert self.train is not None  # otherwise `length` has raised
        kept, transform = self._held
        found = pipeline.train_batches(
            kept, self.train, batch_size=batch_size, seed=seed, start=start, stop=start + total,
            placement=distributed.jit_placement(mesh), transform=transform, threads=self.threads, workers=self.workers,
            buckets=self.buckets(self.train),
        )  # fmt: skip
        augmented, key = jax.jit(self.augment), jax.random.key(seed)
        return (augmented(jax.random.fold_in(key, i), batch) for i, batch in enumerate(found, start))

    @functools.cached_property
    def _held(self) -> tuple[Any, Callable | None]:
        return self.kept()

    def kept(self) -> tuple[Any, Callable | None]:
        """Returns the training data in the form of the cache, in numpy, and the transform that is left to apply."""
        if self.cache == "none" or self.train is None:
            return self.train, self.transform
        arrays = pipeline.materialise(self.train, None if self.random else self.transform)
        return arrays, self.transform if self.random else None

    @property
    def test(self) -> sources.Source | None:
        """The test split, opened now; None if there is none."""
        return open_test(self)


def length(data: Data, batch_size: int, steps: int | None, epochs: float | None) -> int:
    """Returns the number of batches of a training of this length.

    Raises:
      BadRequest: not exactly one of `steps` and `epochs`, numbers that are not positive, or a batch larger than the
        data.
    """
    if data.train is None:
        raise errors.BadRequest("these data were opened from a run's record; to train, open the data set itself.")
    if (steps is None) == (epochs is None):
        raise errors.BadRequest("give the length as either epochs or steps, such as epochs=3.")
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12
        ):
            raise errors.BadRequest(f"{name} is {errors.shown(value)}; it takes a positive number.")
    if batch_size > data.train.length:
        raise errors.BadRequest(
            f"batch_size={batch_size} is larger than the {data.train.length} training examples of {data.train.name}."
        )
    return int(steps) if steps is not None else max(1, round((epochs or 0) * data.train.length / batch_size))


def open_data(
    *,
    name: str,
    data_dir: str | None = None,
    train: str = "train",
    val: str | None = None,
    test: str | None = "test",
    image_key: str = "image",
    label_key: str = "label",
    transform: str = "",
    eval_transform: str = "",
    augment: str = "",
    statistics: str | tuple | list = "none",
    cache: Literal["none", "host", "device", "auto"] = "auto",
    threads: int = 8,
    workers: int = 0,
    fields: Sequence[str] = (),
    most_objects: int = 0,
    visible: float = 0.0,
    mock: int = 0,
    classes: Sequence[int | str] = (),
    per_class: int = 0,
    subset_seed: int = 0,
    windows: dict | None = None,
    buckets: dict | None = None,
    text: dict | None = None,
    recorded: data_info.Recorded | None = None,
) -> Data:
    """Opens the data of a run; the arguments are the keys of a config's `data` section.

    Args:
      name, data_dir, image_key, label_key, fields, most_objects, mock: see `data.sources.open_split`.
      train, val, test: tfds split expressions, such as `train[:90%]`; they must not overlap.
      transform: host operations on single training images, such as `random_resized_crop(224)|randaugment(2, 9)`: see
        `data.transforms.OPERATIONS`.
      eval_transform: host operations on evaluation images, such as `resize_crop(224)`.
      visible: smallest share of a box's area, from 0 to 1, that must stay inside the image after `transform` and after
        `augment` for the box to be kept.
      augment: device operations on training batches, such as `pad_crop(4)|flip|mixup(0.2)`: see
        `data.augment.OPERATIONS`.
      statistics: mean and standard deviation by name (`data.augment.STATISTICS`), or as a pair.
      cache: "none" streams, "host" keeps decoded images in memory, "device" on the device, "auto" decides by size.
      threads: number of reading threads.
      workers: number of reading processes, each with that many threads; 0 reads in this process.
      mock: this many artificial examples per split instead of the real ones.
      classes: numbers or names of the classes to keep, in every split; they become 0, 1, ...
      per_class: training examples of each class, for learning from few labels; 0 for all.
      subset_seed: for the choice of these examples.
      windows: uses labelled windows of images with boxed objects as examples: arguments of `data.windows.labelled`.
      buckets: {field: lengths} of sequences, such as {"words": (8, 16)}: batches hold examples of similar length, and
        each is padded to one of these lengths.
      text: how texts and their translations become tokens: keys of `data.texts.Texts`. The examples of the data set
        then have the fields `source` and `target`.
      recorded: the run's record of its data. With it, splits are opened only when they are read, and are then compared
        with the record. (Not a key of a config.)
    """

    section = {k: v for k, v in locals().items() if k != "recorded"}
    if windows:
        errors.check_kwargs(labelled, windows, "config.data.windows", given=("source",))
    if threads < 1 or workers < 0:
        raise errors.BadRequest(f"data.threads={threads} and data.workers={workers} must be at least 1 and 0.")
    expressions = {"train": train, "val": val, "test": test}
    errors.check_kwargs(texts.Texts, text or {}, "config.data.text")
    how, vocabulary = texts.Texts(**(text or {})), recorded.info.vocabulary if recorded else None

    def opened(split: str) -> sources.Source:
        if text is not None:
            return texts.open_split(name, split, how, data_dir=data_dir, mock=mock)
        found = sources.open_split(
            name, split, data_dir=data_dir, image_key=image_key, label_key=label_key, fields=fields,
            most_objects=most_objects, mock=mock,
        )  # fmt: skip
        found = labelled(found, **windows) if windows else found
        with errors.at("config.data.classes"):
            return subset.subset(found, classes)

    def known(source: sources.Source, shape: tuple[int, int, int]) -> data_info.DataInfo:
        return data_info.DataInfo(
            name, source.num_classes, source.class_names, source.multi_label, shape, eval_transform, statistics, {},
            source.fields, vocabulary,
        )  # fmt: skip

    def of_run(split: str, which: str = "") -> sources.Source:
        """Opens a split and compares it with the run's record, if there is one."""
        found = opened(split)
        if text is not None:
            if vocabulary is None:  # it is learnt before any split is opened
                raise errors.BadRequest(f"what the run recorded of {errors.printable(name)} lacks a vocabulary.")
            found = texts.as_tokens(found, vocabulary, how, which == "train")
        if which == "train":
            with errors.at("config.data.per_class"):
                found = subset.subset(found, (), per_class, subset_seed)
        if recorded:
            now = known(found, recorded.info.image_shape).with_split(which, split, found if which else None)
            data_info.check(recorded, now, going_on=False)
        return found

    train_source = val_source = None
    if recorded:
        info = recorded.info
        _check_statistics(statistics, info, "config.data")  # those of the record are used
        host, eval_host = hosts(transform, eval_transform, info.fields, visible)
    else:
        hosts(transform, eval_transform, (), visible)  # refuses wrong ones before any data are opened
        vocabulary = texts.vocabulary_of(opened(train), how) if text is not None else None
        train_source = of_run(train, "train")
        val_source = of_run(val, "val") if val else None
        if val_source and (shared := sources.overlap(train_source, val_source)):
            raise errors.BadRequest(f"data.train={train!r} and data.val={val!r} share {shared} examples.")
        host, eval_host = hosts(transform, eval_transform, train_source.fields, visible)
        info = known(train_source, first_shape(train_source, host if transform else None))
        info = info.with_split("train", train, train_source).with_split("val", val or "", val_source)
    there = {"train": train_source, "val": val_source}

    def named(which: str) -> sources.Source | None:
        expression = expressions[which]
        return there.get(which) or (of_run(expression, which) if expression else None)

    return assemble(
        info, train_source, val_source, host, eval_host, open=of_run, named=named, test_split=test, operations=augment,
        visible=visible, buckets=buckets, cache=cache, threads=threads, workers=workers, section=section,
    )  # fmt: skip


def assemble(
    info: data_info.DataInfo,
    train: sources.Source | None,
    val: sources.Source | None,
    host: transforms.Transform,
    eval_host: transforms.Transform,
    *,
    open: Callable[..., sources.Source],
    named: Callable[[str], sources.Source | None],
    test_split: str | None,
    operations: str,
    visible: float,
    buckets: Mapping[str, Any] | None,
    cache: Literal["none", "host", "device", "auto"] = "auto",
    threads: int = 8,
    workers: int = 0,
    section: dict[str, Any] | None = None,
    where: str = "config.data",
) -> Data:
    """Returns opened data, after checking what concerns devices and memory.

    Args:
      info, train, val, open, named, test_split, threads, workers, section: see `Data`.
      host, eval_host: host pipelines of training and of evaluation.
      operations: device operations on training batches, see `data.augment.OPERATIONS`.
      visible, buckets, cache: see `open_data`.
      where: for messages.

    Raises:
      BadRequest: an unknown operation, unknown statistics, wrong buckets, or an impossible cache.
    """
    with errors.at(f"{where}.augment"):
        device = augment.parse(operations, info.num_classes, info.fields, visible)
    _check_statistics(info.statistics, info, where)
    normalise = normaliser(info.statistics)
    if visible and not any(f.kind == "boxes" for f in info.fields):
        raise errors.BadRequest(f"data.visible={visible} concerns boxes, but {errors.printable(info.name)} has none.")
    edges = as_key(buckets or {})
    if edges:  # refuses wrong ones early
        of_source(train, edges) if train else check(edges, info.fields)
    return Data(
        info=info,
        train=train,
        val=val,
        open=open,
        named=named,
        test_split=test_split,
        transform=host.fn if host.spec else None,
        random=host.random,
        eval_transform=eval_host.fn if eval_host.spec else None,
        augment=lambda key, batch: normalise(device(key, batch)),
        preprocess=normalise,
        denormalise=lambda images: augment.denormalise(images, info.statistics),
        image_shape=info.image_shape,
        cache=pipeline.choose_cache(cache, train, host.random, bool(edges)) if train else "none",
        threads=threads,
        workers=workers,
        section=section,
        edges=edges,
    )


def hosts(
    transform: str, eval_transform: str, fields: Sequence[Field], visible: float, where: str = "config.data"
) -> tuple[transforms.Transform, transforms.Transform]:
    """Returns the host pipelines of training and of evaluation."""
    with errors.at(f"{where}.transform"):
        host = transforms.parse(transform, fields, visible)
    with errors.at(f"{where}.eval_transform"):
        eval_host = transforms.parse(eval_transform, fields)  # evaluation keeps every visible object
    if eval_host.random:
        raise errors.BadRequest(f"data.eval_transform={eval_transform!r} draws random numbers; evaluation must not.")
    return host, eval_host


def first_shape(
    source: sources.Source, transform: transforms.Transform | None, where: str = "config.data"
) -> tuple[int, int, int]:
    """Returns the shape (h, w, c) of the first image as the input of a model in training; (0, 0, 0) without images."""
    if not any(f.name == "image" for f in source.fields):
        return 0, 0, 0
    first = source.read([0])[0]
    if transform:
        with errors.at(f"{where}.transform"):
            first = transform.fn(np.random.default_rng(0), first)
    return first["image"].shape


def _check_statistics(statistics: Any, info: data_info.DataInfo, where: str) -> None:
    """Refuses wrong ones early."""
    with errors.at(f"{where}.statistics"):
        augment.statistics(statistics, info.image_shape[2])


def normaliser(statistics: str | tuple | list) -> Callable[[dict], dict]:
    """Returns batch -> batch with normalised images; a batch without images is not changed."""

    def normalise(batch: dict) -> dict:
        if "image" not in batch:
            return batch
        return {**batch, "image": augment.normalise(batch["image"], statistics)}

    return normalise


def open_test(data: Data) -> sources.Source | None:
    """Opens the test split, which must not share examples with training and validation."""
    test = data.named("test")
    if test is None:
        return None
    for other, name in ((data.train, "train"), (data.val, "val")):
        if other and (shared := sources.overlap(other, test)):
            raise errors.BadRequest(
                f"data.{name}={other.name!r} and data.test={data.test_split!r} share {shared} examples."
            )
    return test
