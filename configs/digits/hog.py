"""HOG of scikit-learn's digits: needs no data, no preparation, no network.

python -m recvis_jax.features --config=configs/digits/hog.py --split=train --out=runs/digits_hog
python -m recvis_jax.evaluate --workdir=runs/digits_hog

Settings are in `bovw.py`.
"""

from recvis_jax import config

get_config = config.like(__file__, "bovw.py", "encoding=hog")
