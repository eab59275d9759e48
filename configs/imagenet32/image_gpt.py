"""Image GPT (Chen et al. 2020) on ImageNet of 32x32 pixels in 512 colours, for a TPU pod, in bfloat16.

  python -m recvis_jax.plan --config=configs/imagenet32/image_gpt.py --topology=v5e:4x4
  python -m recvis_jax.train --config=configs/imagenet32/image_gpt.py --workdir=runs/igpt_s
  python -m recvis_jax.generate --workdir=runs/igpt_s --complete

Against the paper's section 3.2 and its code; what it does not say is ours:

  colours                  512, k-means of RGB       model.palette, model.colours
  layers, width, heads     24, 512, 8 (size=s)       36, 1024, 8 (m); 48, 1536, 16 (l)
  updates, batch size      1,000,000 of 128          steps, batch_size
  optimizer                Adam, b1 0.9, b2 0.95     optim
  learning rate            3e-3 (s, m), 1e-3 (l)     optim.lr; a warm-up of an epoch, then a cosine to 0
  dropout, weight decay    none                      but for weight_decay=0.01, ours

The published models reach 2.0895 (s), 2.0614 (m) and 2.0466 (l) nats a token. Not trained here.
"""

import ml_collections

from recvis_jax import config, errors

RATES = dict(s=3e-3, m=3e-3, l=1e-3)


def get_config(arg=None):
    arg = config.parse_arg(arg, size="s")
    lr = errors.choose(RATES, arg.size, "size")
    c = ml_collections.ConfigDict()
    c.seed = 0
    c.steps = 1_000_000
    c.batch_size = 128
    c.eval_batch_size = 128
    c.dtype = "bfloat16"
    c.log_every = 100
    c.eval_every = 10_000
    c.checkpoint_every = 2_000

    c.data = dict(name="imagenet2012", train="train[:-10000]", val="train[-10000:]", test="validation")
    size = 8 if arg.smoke else 32
    c.data.transform = c.data.eval_transform = f"resize_crop({size}, resize={size})"
    c.data.statistics = ((0.0,), (1.0,))
    c.data.workers = 0 if arg.smoke else 8
    c.model = dict(name=f"igpt_{arg.size}", colours=512, pixels=1024, palette=True, remat=arg.size != "s")
    if arg.smoke:
        c.model.update(colours=8, pixels=64, width=16, depth=1, heads=2)
    c.task = dict(name="pixels")
    c.optim = dict(name="adamw", lr=lr, b1=0.9, b2=0.95, weight_decay=0.01, decay=r"kernel$", schedule="cosine")
    c.optim.warmup_epochs = 1.0
    return config.finish(c, arg)
