"""Bags of visual words of eight regions on Fashion-MNIST, side by side: a spatial pyramid.

python -m recvis_jax.features --config=configs/fashion_mnist/bovw_pyramid.py --split=train --out=runs/bovw_pyramid
python -m recvis_jax.evaluate --workdir=runs/bovw_pyramid

Settings are in `bovw.py`.
"""

from recvis_jax import config

get_config = config.like(__file__, "bovw.py", "encoding=pyramid")
