"""Adaptation layers on a pretrained trunk (Oquab et al. 2014), on scenes of several garments.

  python -m recvis_jax.prepare --dataset=fashion_scenes
  python -m recvis_jax.train --config=configs/fashion_mnist/adaptation.py:run=source --workdir=runs/source
  python -m recvis_jax.train --config=configs/fashion_mnist/adaptation.py --workdir=runs/adaptation
  python -m recvis_jax.evaluate --workdir=runs/adaptation --windows=fashion_scenes

Arguments: `run`, a row below (`pretrained` by default), and `scenes`, the number to train on. Mean average precision
(%, 11-point) on 1,000 test scenes, mean over `--config.seed` 0, 1, 2, each with its own source (`--config.init_from`;
accuracy on single garments 90.13 +- 0.28 %); then minutes on one CPU core with AVX2 (the source takes 2.3):

  run=pretrained   trunk pretrained and frozen       58.36 +- 0.69   0.9
  run=finetuned    trunk pretrained and fine-tuned   78.26 +- 0.17   2.0
  run=random       trunk random and frozen           47.33 +- 0.24   0.9
  run=scratch      all trained from scratch          72.43 +- 1.11   2.0
"""

import ml_collections

from recvis_jax import config, errors

# Whether the trunk is frozen, and where it comes from.
RUNS = {
    "source": (False, None),
    "pretrained": (True, "runs/source"),
    "finetuned": (False, "runs/source"),
    "random": (True, None),
    "scratch": (False, None),
}


def get_config(arg=None):
    arg = config.parse_arg(arg, run="pretrained", scenes=500)
    frozen, source = errors.choose(RUNS, arg.run, "run")
    trunk = dict(name="speednet", widths=(32, 32, 64, 128), blocks=(1, 1, 0))
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.batch_size = 256
    c.eval_batch_size = 2000
    if arg.run == "source":
        c.epochs = 8.0
        c.data = dict(name="fashion_mnist", train="train[:27000]", val="train[27000:30000]", test="test")
        c.data.augment = "pad_crop(4)|flip"
        c.model = trunk
        c.optim = dict(name="muon", lr=0.01, schedule="cosine", warmup=0.05, weight_decay=1e-2)
    else:
        c.steps = 1000
        c.eval_every = 200
        c.data = dict(name="fashion_scenes", train=f"train[:{arg.scenes}]", val="train[3500:]", test="test")
        c.data.windows = dict(size=28)
        c.data.augment = "flip"
        c.model = dict(name="probe", backbone=trunk, frozen=frozen, hidden=(128,))
        c.optim = dict(name="adamw", lr=1e-3, schedule="cosine", warmup=0.05, weight_decay=1e-2)
        c.init_from = None if arg.smoke else source
    c.data.statistics = "fashion_mnist"
    c.task = dict(name="classify", loss="softmax")
    return config.finish(c, arg)
