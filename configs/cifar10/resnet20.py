"""A CIFAR ResNet (He et al. 2015, section 4.2) on CIFAR-10, or CIFAR-100 with `--config.data.name=cifar100`.

  python -m recvis_jax.prepare --dataset=cifar10
  python -m recvis_jax.train --config=configs/cifar10/resnet20.py:depth=20 --workdir=runs/cifar10_resnet20

The paper's recipe: 64k updates of 128 images, the rate divided by 10 after 32k and 48k, weight decay on all
parameters, 4-pixel shifts and mirroring. depth is 20, 32, 44, 56 or 110; `plain=True` leaves the shortcuts out.

The paper reports 91.25 % for depth 20 (its table 6). Not yet trained here.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, depth=20, plain=False)
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 64_000
    c.batch_size = 128
    c.eval_batch_size = 1000
    c.eval_every = 1000
    c.checkpoint_every = 1000

    c.data = dict(name="cifar10", train="train[:45000]", val="train[45000:]", test="test")
    c.data.statistics = "cifar10"
    c.data.augment = "pad_crop(4)|flip"
    c.model = dict(name=f"{'plain' if arg.plain else 'resnet'}{arg.depth}")
    c.task = dict(name="classify", loss="softmax")
    c.optim = dict(name="momentum", lr=0.1, schedule="step", weight_decay=1e-4, decay=".*")
    c.optim.schedule_args = dict(boundaries=(0.5, 0.75), factor=0.1)
    return config.finish(c, arg)
