r"""Masked patch prediction: a ViT that learns from images without labels.

Dosovitskiy et al., arXiv:2010.11929, section 4.6 and appendix B.1.2. The
argument is what is predicted of a corrupted patch, mean_color (the paper's
choice), downsized or pixels, and after a comma 15% to corrupt so many of the
patches instead of half of them. JFT is Google's own; its size stands here so
that the recipe can be planned:

  python -m vit_jax.train --config=configs/masked_patches.py:mean_color --check

With images of your own, prepared for TensorFlow Datasets as NAME:

  python -m vit_jax.train --config=configs/masked_patches.py:mean_color \
    --workdir=runs/masked_patches --config.data.train.source=tfds:NAME \
    --config.data.test.source=tfds:NAME \
    --config.data.expected.train_examples=N

and then with labels:

  python -m vit_jax.train --config=configs/finetune.py:imagenet,B/16 \
    --workdir=DIR --config.init=runs/masked_patches

On a CPU, a small ViT on real images: configs/without_labels.py.

Expected: 79.9 % on ImageNet after fine-tuning at 384 px, 2 % above training
from scratch and 4 % below supervised pre-training (the paper); after 100,000
steps there is little to gain.
Cost: 1,000,000 steps of 4,096 images are 14 epochs of JFT, 430 exaFLOP by
formula (3 forward passes an image).
"""

from ml_collections import ConfigDict

TARGETS = ('mean_color', 'downsized', 'pixels')
VARIANTS = (*TARGETS, 'mean_color,15%')


def get_config(argument: str = 'mean_color') -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: TARGET[,15%].
  """
  name, _, rest = argument.partition(',')
  if name not in TARGETS or rest not in ('', '15%'):
    raise ValueError(
      f'{argument!r} is not understood; expected one of '
      f'{", ".join(TARGETS)}, with ,15% or not'
    )
  source = 'tfds:jft'
  return ConfigDict(
    dict(
      task=dict(
        name='masked_patches', target=name, corrupted=0.15 if rest else 0.5
      ),
      model=dict(name='vit', variant='B/16'),
      data=dict(
        train=dict(
          source=source,
          split='train',
          # All the augmentation that an author tells of.
          preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)',
        ),
        test=dict(
          source=source,
          split='test',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # A v3 host has to decode some thousand images a second.
        workers=16,
        # Among hundreds of millions of images some are broken.
        max_broken=0.001,
        expected=dict(train_examples=303_000_000, image_shape=(224, 224, 3)),
      ),
      batch_size=4096,
      total='1000000steps',
      optimizer=dict(
        # The paper tells of no weight decay.
        name='adamw',
        learning_rate=2e-4,
        # As many as the same model has in vit_jft.py.
        accumulate=8,
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      mesh=dict(data=-1),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='10000steps'),
      checkpoint=dict(every='5000steps'),
    )
  )
