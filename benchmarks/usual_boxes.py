"""Average precision of a detector that never looks: in all pictures the boxes that objects usually have.

  python benchmarks/usual_boxes.py --dataset=deepforest --data_dir=FOLDER

Of the training boxes, the one is taken that overlaps (intersection over union above one half) most training boxes of
its class; then the one that overlaps most of those that are left, and so on. Its score is how many these are in a
picture. What a detector reaches beyond this it has seen.
"""

import functools

import numpy as np
from absl import app, flags

from recvis_jax import errors
from recvis_jax.data import pipeline, sources
from recvis_jax.evaluation import coco_ap, metrics

FLAGS = flags.FLAGS
FIELDS = ("image", "boxes", "labels", "size", "frame")


def usual(true: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` boxes (q 4) and how many of the true ones (n 4) each of them adds."""
    asked = true[np.random.default_rng(seed).permutation(len(true))[:2000]]
    low = np.maximum(asked[:, None, :2], true[None, :, :2])
    high = np.minimum(asked[:, None, 2:], true[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (asked, true)]
    hit = shared > 0.5 * (area[0][:, None] + area[1] - shared)
    left, chosen, adds = np.ones(len(true), bool), [], []
    while len(chosen) < most and left.any():
        gain = (hit & left).sum(1)
        best = int(gain.argmax())
        if not gain[best]:
            break
        chosen.append(best)
        adds.append(gain[best])
        left &= ~hit[best]
    return asked[chosen], np.array(adds, float)


def opened(split: str) -> sources.Source:
    """Opens a split, with crowds where the data set has them."""
    open_with = functools.partial(sources.open_split, FLAGS.dataset, split, data_dir=FLAGS.data_dir)
    try:
        return open_with(fields=(*FIELDS, "crowd"))
    except errors.BadRequest:
        return open_with(fields=FIELDS)


def main(_: list[str]) -> None:
    train, test = opened(FLAGS.train), opened(FLAGS.test)
    rows = train.read(np.arange(train.length))
    kept = [~np.asarray(row.get("crowd", np.zeros(len(row["labels"]))), bool) for row in rows]
    boxes, labels = (
        np.concatenate([row[name][of] for row, of in zip(rows, kept, strict=True)]) for name in ("boxes", "labels")
    )
    found = [usual(boxes[labels == k], 100, FLAGS.seed) for k in range(train.num_classes)]
    where = np.concatenate([b for b, _ in found])
    which = np.concatenate([np.full(len(b), k) for k, (b, _) in enumerate(found)])
    scores = np.concatenate([n for _, n in found]) / len(rows)
    metric = coco_ap.coco(train.num_classes)
    batch = pipeline.stack(test.read(np.arange(test.length)), test) | {"mask": np.ones(test.length, bool)}
    outputs = {
        name: np.broadcast_to(x, (test.length, *x.shape))
        for name, x in dict(boxes=where, labels=which, scores=np.minimum(scores, 1)).items()
    }
    values = metrics.accumulate({"ap": metric}, [{"ap": metric.update(outputs, batch)}])
    print(f"{len(boxes):,} boxes in {len(rows):,} pictures give {len(where)}; on {test.length:,} others:")
    for name in ("AP", "AP50", "AP75", "AR_100"):
        print(f"  {name}: {values[name]:.4f}")


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "deepforest", "A prepared data set with boxes, all pictures of one size.")
    flags.DEFINE_string("data_dir", None, "The folder of prepared data sets.")
    flags.DEFINE_string("train", "train", "Whose boxes are taken.")
    flags.DEFINE_string("test", "test", "On which pictures they are judged.")
    flags.DEFINE_integer("seed", 0, "Of the order in which boxes win ties.")
    app.run(main)
