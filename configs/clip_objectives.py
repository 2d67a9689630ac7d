r"""Three ways to learn from captions, on the same towers, data and steps.

The comparison that CLIP's paper opens with (arXiv:2103.00020, figure 2):
predicting captions token by token, predicting which words they have, and
telling which caption belongs to which image. The argument is the objective;
all else is that of clip_shapes.py.

  python -m vit_jax.train --config=configs/clip_objectives.py:bag_of_words \
    --workdir=runs/objectives/bag_of_words

Expected, of the paper: on ImageNet by names, prediction of words learns 3 times
as efficiently as that of captions, and the contrastive objective 4 times as
efficiently as that. On drawn shapes the order is the same: after 51,200 pairs
the right caption of 144 is first for 99 % (contrastive), 16 and 6 %; see the
README, "Images and text".
Cost: that of clip_shapes.py, less for bag_of_words, which has no text tower.
Retrieval by captioning puts each pair of image and text through the text tower.
"""

import pathlib
import runpy

from ml_collections import ConfigDict

VARIANTS = ('contrastive', 'bag_of_words', 'captioning')


def get_config(objective: str = 'contrastive') -> ConfigDict:
  """Returns the configuration.

  Args:
    objective: what is learned, one of VARIANTS.
  """
  if objective not in VARIANTS:
    raise ValueError(f'{objective!r} is not one of {", ".join(VARIANTS)}')
  file = pathlib.Path(__file__).with_name('clip_shapes.py')
  config = runpy.run_path(str(file))['get_config']()
  config.task = ConfigDict(dict(name=objective))
  # Each has metrics of its own; these are what they have in common.
  config.eval.retrieval = 'first'
  return config
