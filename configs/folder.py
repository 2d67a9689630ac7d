r"""A small ViT on your own folder of images, from scratch.

The folder holds either DIR/train/CLASS/* and DIR/test/CLASS/* (a folder
called val, valid or validation does as well), or just DIR/CLASS/*; what there
is no folder for is tested on a tenth of the images, held out of training. Any
format that Pillow reads will do.

  python -m vit_jax.train --config=configs/folder.py:DIR --workdir=runs/folder

Expected: depends on the images. A ViT from scratch wants thousands of them a
class; with fewer, a pre-trained one (configs/finetune.py) does far better.
Cost by formula (3 forward passes an image): 1.1 GFLOP an image, so 110 TFLOP
for 100 epochs of 1,000 images. For larger images than 64x64 change the
preprocessing of both parts together, for example on the command line:

  --config.data.train.preprocess='inception_crop(128)|flip_lr|value_range(-1,1)'
  --config.data.test.preprocess='resize(128)|value_range(-1,1)'
"""

import pathlib

from ml_collections import ConfigDict

VARIANTS = ('data/images',)
# What people call the folder of the images to test on.
TEST_FOLDERS = ('test', 'val', 'valid', 'validation')


def _splits(directory: pathlib.Path) -> tuple[str, str]:
  """Returns what of the folder to train and to test on."""
  if not (directory / 'train').is_dir():
    return 'all[:90%]', 'all[90%:]'
  for name in TEST_FOLDERS:
    if (directory / name).is_dir():
      return 'train', name
  return 'train[:90%]', 'train[90%:]'


def get_config(directory: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    directory: holds the images, see the top of this file.
  """
  train, test = _splits(pathlib.Path(directory).expanduser())
  source = f'folder:{directory}'
  return ConfigDict(
    dict(
      task=dict(
        name='classification',
        # Both keep a model from being too sure of few examples.
        label_smoothing=0.1,
        mixup=0.2,
      ),
      model=dict(
        name='vit',
        # 64 tokens at 64x64.
        patch_size=8,
        # The width and heads of ViT-Ti with half its layers: 2.7 million
        # parameters, as many as a small data set can teach.
        width=192,
        depth=6,
        mlp_dim=768,
        num_heads=3,
        # Learns faster than a class token from few examples.
        pooling='gap',
        # Neighbourhood need not be learned.
        position='sincos_2d',
        dropout=0.1,
        stochastic_depth=0.1,
      ),
      data=dict(
        train=dict(
          source=source,
          split=train,
          # At least a third of the image: what the label is about should
          # still be seen. Remove flip_lr if left and right mean something.
          preprocess=(
            'inception_crop(64, 0.33)|flip_lr|randaugment(2, 10)'
            '|value_range(-1, 1)'
          ),
        ),
        test=dict(
          source=source,
          split=test,
          # Keeps the aspect ratio; the rim rarely matters.
          preprocess='resize_small(72)|central_crop(64)|value_range(-1, 1)',
        ),
        # One's own folders have a damaged file here and there: they are
        # named in the log. Many mean that something is wrong.
        max_broken=0.01,
      ),
      batch_size=64,
      total='100ep',
      optimizer=dict(
        name='adamw', learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='5%'),
      eval=dict(every='5ep'),
      # The last one is not always the best where there are few examples.
      checkpoint=dict(every='5ep', best='test/accuracy'),
      log_every='20steps',
    )
  )
