"""Improved Fisher vectors on Caltech-101, 30 images a class (15: :per_class=15), as Chatfield et al. 2011 have them.

  python -m recvis_jax.features --config=configs/caltech101/fisher.py --split=train --out=runs/caltech101
  python -m recvis_jax.evaluate --workdir=runs/caltech101 --metrics=confusion_matrix

Never run as a whole by us: it takes the data set, `tfds build caltech101 --file_format=array_record`, and 327,680
dimensions an image. Published, by VLFeat's `apps/recognition` with 30 images a class, as the mean of the classes'
accuracies: 77.6 % with this pyramid, 73.0 % without (:pyramid=1x1). What differs there: images keep their shape, with
at most 480 pixels a side, and here they are squares of 300; splits are tfds's.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, per_class=30, pyramid="1x1+2x2+3x1", seed=0)
    size = 40 if arg.smoke else 300
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 8

    # tfds's "train" has exactly 30 images a class.
    c.data = dict(name="caltech101", train="train", val=None, test="test")
    c.data.per_class = 0 if arg.smoke else arg.per_class
    c.data.subset_seed = arg.seed
    c.data.transform = c.data.eval_transform = f"resize(({size}, {size}))"
    c.model = dict(name="bag_of_words", words=256, components=80, pyramid=arg.pyramid)
    sizes = (2, 3) if arg.smoke else (4, 6, 8, 10, 12)
    c.model.descriptor = dict(name="phow", sizes=sizes, step=4, root=True)
    c.model.encoder = dict(name="fisher")
    c.learn = dict(images=2000, per_image=250, passes=50)
    return config.finish(c, arg)
