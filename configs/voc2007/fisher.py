"""Improved Fisher vectors on Pascal VOC 2007: several classes an image, mean average precision.

  python -m recvis_jax.features --config=configs/voc2007/fisher.py --split=train --out=runs/voc2007
  python -m recvis_jax.evaluate --workdir=runs/voc2007 --metrics=mean_average_precision

Never run as a whole by us: it takes the data set, `tfds build voc/2007 --file_format=array_record`, and 327,680
dimensions an image, 6.6 GB for 5,011 training images. Published: VLFeat's `apps/recognition`: 62.2 % with this
pyramid, 59.1 % without (:pyramid=1x1); Chatfield et al. 2011: 61.7 %. What differs there: images keep their shape, of
at most 480 pixels, and here they are squares of 384; difficult objects are left out there, and count here.
"""

import ml_collections

from recvis_jax import config


def get_config(arg=None):
    arg = config.parse_arg(arg, pyramid="1x1+2x2+3x1", seed=0)
    size = 40 if arg.smoke else 384
    c = ml_collections.ConfigDict()
    c.seed = arg.seed
    c.batch_size = 8

    c.data = dict(name="voc/2007", train="train", val="validation", test="test")
    c.data.label_key = "labels"
    c.data.transform = c.data.eval_transform = f"resize(({size}, {size}))"
    c.model = dict(name="bag_of_words", words=256, components=80, pyramid=arg.pyramid)
    sizes = (2, 3) if arg.smoke else (4, 6, 8, 10, 12)
    c.model.descriptor = dict(name="phow", sizes=sizes, step=4, root=True)
    c.model.encoder = dict(name="fisher")
    c.learn = dict(images=2000, per_image=250, passes=50, mirrored=True)
    return config.finish(c, arg)
