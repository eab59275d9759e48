"""DETR-DC5 (Carion et al. 2020) on COCO 2017: `detr_r50.py` with a dilated last stage, 43.3 AP published.

  python -m recvis_jax.train --config=configs/coco/detr_r50_dc5.py --workdir=runs/detr_r50_dc5

Not yet trained here.
"""

from recvis_jax import config

get_config = config.like(__file__, "detr_r50.py", "dc5=True")
