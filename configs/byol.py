r"""BYOL: a ViT that learns from two views of images, without labels.

Grill et al., arXiv:2006.07733, section 3 and appendices B, C and F; the ViT
takes the place of the ResNet-50 there. The argument is the length, 1000ep,
300ep or 100ep, each with the paper's numbers, and after a comma the model
(default S/16) or a ResNet such as R50x1.

  python -m vit_jax.train --config=configs/byol.py:300ep --workdir=runs/byol

and then with labels:

  python -m vit_jax.train --config=configs/finetune.py:cifar10,S/16 \
    --workdir=DIR --config.init=runs/byol --config.model.pooling=gap

The argument fashion_mnist or emoji is a small ViT on real images on a CPU; the
data lies in data/, or where a path after a comma says:

  python -m vit_jax.train --config=configs/byol.py:fashion_mnist \
    --workdir=runs/byol_fashion

Watch test/feature_variance: at 0, all images have the same features, and
nothing is learned.

Expected: 74.3 % on ImageNet by a linear classifier, of a ResNet-50 after 1000
epochs, and 72.5 % after 300 (the paper); of ViTs and of these ResNets, which
have group norm, nothing is known. Of the small ones, see the README.
Cost of 300 epochs of S/16 by formula: 28 exaFLOP (two views, each with a
forward and a backward pass, and a forward pass of the target); the small ones
take four minutes on two CPU cores.
"""

from ml_collections import ConfigDict

# Learning rate of 256 examples, weight decay and target's decay by length.
LENGTHS = {
  '1000ep': (0.2, 1.5e-6, 0.996),
  '300ep': (0.3, 1e-6, 0.99),
  '100ep': (0.45, 1e-6, 0.99),
}
VARIANTS = (
  '300ep',
  '1000ep',
  '100ep,B/16',
  '300ep,R50x1',
  'fashion_mnist,data/fashion-mnist',
  'emoji,data/emoji64.tar.gz',
)

# Table 6: the two views differ in blur and solarisation.
_VIEW = (
  "inception_crop(224, 0.08, 1.0, 'bicubic')|flip_lr|color_jitter|grayscale"
)
_FIRST = f'{_VIEW}|blur(1.0)|value_range(-1, 1)'
_SECOND = f'{_VIEW}|blur(0.1)|solarize(0.2)|value_range(-1, 1)'


def get_config(argument: str = '300ep') -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: LENGTH[,MODEL], fashion_mnist[,DIRECTORY] or emoji[,PATH].
  """
  name, _, rest = argument.partition(',')
  if name == 'fashion_mnist':
    return _fashion_mnist(rest or 'data/fashion-mnist')
  if name == 'emoji':
    return _emoji(rest or 'data/emoji64.tar.gz')
  if name not in LENGTHS:
    raise ValueError(
      f'{argument!r} is not understood; expected one of {", ".join(LENGTHS)}, '
      'fashion_mnist or emoji'
    )
  model = rest or 'S/16'
  learning_rate, weight_decay, target_decay = LENGTHS[name]
  batch_size, source = 4096, 'tfds:imagenet2012'
  if 'x' in model:
    fields = dict(name='resnet', variant=model)
  else:
    fields = dict(name='vit', variant=model, pooling='gap')
  return ConfigDict(
    dict(
      task=dict(
        name='byol', hidden=4096, projection=256, target_decay=target_decay
      ),
      model=fields,
      data=dict(
        train=dict(
          source=source, split='train', preprocess=_FIRST, second_view=_SECOND
        ),
        test=dict(
          source=source,
          split='validation',
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # Two views of each image have to be made.
        workers=32,
        expected=dict(train_examples=1_281_167, image_shape=(224, 224, 3)),
      ),
      batch_size=batch_size,
      total=name,
      optimizer=dict(
        name='lars',
        learning_rate=learning_rate * batch_size / 256,
        weight_decay=weight_decay,
      ),
      schedule=dict(name='cosine', warmup='10ep'),
      mesh=dict(data=-1),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='10ep'),
      checkpoint=dict(every='1ep', keep=2),
    )
  )


def _small(**sections) -> ConfigDict:
  """Returns what the small runs have in common."""
  return ConfigDict(
    dict(
      # Batch norm, and a target that moves fast: the run is short.
      task=dict(name='byol', hidden=256, projection=64, target_decay=0.97),
      batch_size=128,
      # Small batches need no LARS.
      optimizer=dict(
        name='adamw', learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0
      ),
      schedule=dict(name='cosine', warmup='5%'),
      # How good the features are: labels are for nothing else.
      eval=dict(
        every='25%',
        batch_size=512,
        # Fifty examples bear little regularisation.
        few_shot=dict(shots=(5,), feature='pooled', l2=(0.1, 1.0, 10.0, 100.0)),
      ),
      checkpoint=dict(every='25%'),
      log_every='50steps',
      **sections,
    )
  )


def _fashion_mnist(directory: str) -> ConfigDict:
  """Returns the run on Fashion-MNIST."""
  source = f'idx:{directory}'
  view = 'inception_crop(28, 0.3)|flip_lr|color_jitter|blur(0.5, 0.1, 1.0)'
  return _small(
    model=dict(
      name='vit',
      patch_size=4,
      width=96,
      depth=4,
      mlp_dim=192,
      num_heads=4,
      pooling='gap',
      position='sincos_2d',
    ),
    data=dict(
      train=dict(
        source=source,
        split='train',
        preprocess=f'{view}|value_range(-1, 1)',
        second_view=f'{view}|solarize(0.2)|value_range(-1, 1)',
      ),
      test=dict(source=source, split='test', preprocess='value_range(-1, 1)'),
      expected=dict(train_examples=60_000, image_shape=(28, 28, 1)),
    ),
    total='1ep',
  )


def _emoji(path: str) -> ConfigDict:
  """Returns the run on emoji, whose group is the class that few-shot uses."""
  source = f'field:group:captions:{path}'
  view = 'inception_crop(64, 0.2)|flip_lr|color_jitter|grayscale'
  return _small(
    model=dict(
      name='vit',
      patch_size=8,
      width=96,
      depth=4,
      mlp_dim=192,
      num_heads=4,
      pooling='gap',
      position='sincos_2d',
    ),
    data=dict(
      train=dict(
        source=source,
        split='train',
        preprocess=f'{view}|blur(1.0)|value_range(-1, 1)',
        second_view=f'{view}|blur(0.1)|solarize(0.2)|value_range(-1, 1)',
      ),
      # Concepts that training has not seen.
      test=dict(source=source, split='test', preprocess='value_range(-1, 1)'),
      expected=dict(train_examples=7_769, image_shape=(64, 64, 3)),
    ),
    total='5ep',
  )
