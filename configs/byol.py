r"""BYOL: a ViT that learns from two views of images, without labels.

Grill et al., arXiv:2006.07733, section 3 and appendices B, C and F; the ViT
takes the place of the ResNet-50 there. The argument is the length, 1000ep,
300ep or 100ep, each with the paper's numbers, and after a comma the model
(default S/16) or a ResNet: one with group norm, such as R50x1, or one of CLIP's
with batch norm, such as RN50.

  python -m vit_jax.train --config=configs/byol.py:300ep --workdir=runs/byol

and then with labels:

  python -m vit_jax.train --config=configs/finetune.py:cifar10,S/16 \
    --workdir=DIR --config.init=runs/byol --config.model.pooling=gap

On a CPU, a small ViT on real images: configs/without_labels.py.

Watch test/feature_variance: at 0, all images have the same features, and
nothing is learned.

Expected: 74.3 % on ImageNet by a linear classifier, of a ResNet-50 after 1000
epochs, and 72.5 % after 300 (the paper); of ViTs and of these ResNets, which
are not quite the paper's, nothing is known.
Cost of 300 epochs of S/16 by formula: 28 exaFLOP (two views, each with a
forward and a backward pass, and a forward pass of the target).
"""

from ml_collections import ConfigDict

from vit_jax.models import clip

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
  '300ep,RN50',
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
    argument: LENGTH[,MODEL].
  """
  length, _, model = argument.partition(',')
  if length not in LENGTHS:
    raise ValueError(
      f'{argument!r} is not understood; expected one of {", ".join(LENGTHS)}'
    )
  model = model or 'S/16'
  learning_rate, weight_decay, target_decay = LENGTHS[length]
  batch_size, source = 4096, 'tfds:imagenet2012'
  if model.startswith('RN'):
    fields = clip.variant(model)['image']
  elif 'x' in model:
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
      total=length,
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
