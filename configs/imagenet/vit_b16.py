"""ViT-B/16 on ImageNet, for a TPU (v5e-8 or larger): 90 epochs in bfloat16.

  python -m recvis_jax.train --config=configs/imagenet/vit_b16.py --workdir=runs/imagenet_vit_b16

The recipe of `vit_s16.py` with the larger model. Compiled for TPUs by `recvis_jax.plan`; not yet trained here.
"""

from recvis_jax import config

get_config = config.like(__file__, "vit_s16.py", "variant=vit_b16")
