"""Fine-tuning of MAE ViT-H/16 on ImageNet (He et al. 2022).

  python -m recvis_jax.train --config=configs/imagenet/mae_vit_h16_finetune.py --workdir=runs/x

Settings, and the paper's line by line, are in `mae_vit_b16_finetune.py`. Argument `patch`: the paper's H has 14.
Not yet trained here.
"""

from recvis_jax import config

get_config = config.like(__file__, "mae_vit_b16_finetune.py", "size=h")
