"""ViT-H/14 on ImageNet: 90 epochs in bfloat16, the recipe of `vit_s16.py` with a model of 632 million parameters.

  python -m recvis_jax.train --config=configs/imagenet/vit_h14.py --workdir=runs/imagenet_vit_h14 \\
      --config.sharding=fsdp --config.model.remat=True

Its blocks are scanned; otherwise compiling would take minutes. With these settings it does not fit 16 GB a device;
`recvis_jax.plan --search` shows what fits where. A model of this size needs more data than ImageNet-1k: this config is
for planning and scaling. Compiled for TPUs by `recvis_jax.plan`; not trained here.
"""

from recvis_jax import config

vit_s16 = config.like(__file__, "vit_s16.py", "variant=vit_h14")


def get_config(arg=None):
    c = vit_s16(arg)
    with c.unlocked():
        c.model.scan = True
        if c.data.get("mock"):  # a smoke run, of images that are not made of patches of 14
            c.model.update(patch_size=16, width=64, depth=2, heads=4)
    return c
