"""DETR with a ResNet-101 (Carion et al. 2020) on COCO 2017: otherwise as `detr_r50.py`, 43.5 AP published.

  python -m recvis_jax.train --config=configs/coco/detr_r101.py --workdir=runs/detr_r101

Not yet trained here.
"""

from recvis_jax import config

get_config = config.like(__file__, "detr_r50.py", "backbone=101")
