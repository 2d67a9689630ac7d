r"""ViT-g/14 and ViT-G/14, with one and two billion parameters.

Zhai et al., "Scaling Vision Transformers", arXiv:2106.04560, section 3;
numbers of big_vision's configuration of these models. The argument is the
model. JFT-3B is Google's own; its size stands here so that the recipe can be
planned:

  python -m vit_jax.train --config=configs/scaling_vit.py:g/14 --check

With data of your own, prepared for TensorFlow Datasets as NAME:

  python -m vit_jax.train --config=configs/scaling_vit.py:g/14 --workdir=DIR \
    --config.data.train.source=tfds:NAME --config.data.test.source=tfds:NAME \
    --config.data.expected.train_examples=N --config.data.expected.classes=C

The learning rate's plateau makes every checkpoint of it a start: continue it
with a larger config.total, or cool it down.

Expected: 90.45 % ImageNet top-1 of G/14 after fine-tuning, by the paper's
abstract; for how many steps it trained is not settled here.
Cost by formula (3 forward passes an image): g/14 1,624 GFLOP an image, 26,600
exaFLOP in all; G/14 2,931 GFLOP an image, 48,000 exaFLOP in all.
"""

from ml_collections import ConfigDict

VARIANTS = ('g/14', 'G/14')


def get_config(variant: str = 'g/14') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: the model, one of VARIANTS.
  """
  if variant not in VARIANTS:
    raise ValueError(f'{variant!r} is not one of {", ".join(VARIANTS)}')
  source = 'tfds:jft_3b'
  return ConfigDict(
    dict(
      task=dict(name='classification', loss_function='sigmoid'),
      model=dict(
        name='vit',
        variant=variant,
        # As good as a class token, and 256 tokens suit the hardware.
        pooling='map',
        # About log(1 / 29593): each class starts as unlikely as it is.
        head_bias=-10.0,
        # One block compiled for 40 or 48, and only its input kept: at this
        # size memory is what limits the batch.
        scan=True,
        remat='full',
      ),
      data=dict(
        train=dict(
          source=source,
          split='train',
          preprocess='inception_crop(224)|flip_lr|value_range(-1, 1)',
        ),
        test=dict(
          source=source,
          split='val',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        workers=16,
        # Among billions of images some are broken.
        max_broken=0.001,
        expected=dict(
          # "Nearly 3 billion"; the exact number was never told.
          train_examples=3_000_000_000,
          classes=29_593,
          image_shape=(224, 224, 3),
        ),
      ),
      batch_size=16_384,
      total='1000000steps',
      optimizer=dict(
        # Its second moment is rows and columns, the first one bfloat16: half
        # a copy of the model in place of Adam's two.
        name='adafactor',
        learning_rate=8e-4,
        # Times the learning rate; big_vision writes the same as 2.4e-5.
        weight_decay=0.03,
        # 3.0 on the head makes features that transfer (section 3.1).
        weight_decay_rules=(('head/kernel', 100.0), ('.*/kernel', 1.0)),
        clip_norm=1.0,
      ),
      schedule=dict(
        name='rsqrt',
        warmup='10000steps',
        timescale='10000steps',
        cooldown='50000steps',
      ),
      # No core holds parameters, gradients and updates of such a model.
      mesh=dict(data=1, fsdp=-1),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='5000steps'),
      checkpoint=dict(every='2500steps'),
    )
  )
