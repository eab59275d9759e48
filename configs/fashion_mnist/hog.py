"""HOG and a linear classifier on Fashion-MNIST: no vocabulary, the cells side by side.

python -m recvis_jax.features --config=configs/fashion_mnist/hog.py --split=train --out=runs/hog
python -m recvis_jax.evaluate --workdir=runs/hog

Settings are in `bovw.py`.
"""

from recvis_jax import config

get_config = config.like(__file__, "bovw.py", "encoding=hog")
