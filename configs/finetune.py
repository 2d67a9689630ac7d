r"""Fine-tuning a pre-trained ViT, as in the ViT paper.

Dosovitskiy et al., arXiv:2010.11929, section 4.1 and appendix B.1.1, table 4.
It starts from a released checkpoint or from a run of one's own, which you
give. The argument is DATASET[,MODEL[,RESOLUTION]]; the model (default B/16)
has to be that of the checkpoint.

  python -m vit_jax.train --config=configs/finetune.py:cifar10,B/16 \
    --workdir=DIR --config.init=B_16.npz

The resolution (default 384) may be another than that of the pre-training:
position embeddings are interpolated. A model with sincos_2d positions, such as
those of vit_s16_90ep.py, has none to learn; for it add

  --config.model.pooling=gap --config.model.position=sincos_2d

ImageNet at 512 px and more is the paper's table 2: 512 for L/16, 518 for
H/14, and an average over the steps of training is evaluated (Polyak & Juditsky,
1992; decay 0.9999).

To compare learning rates, on images held out of training:

  python -m vit_jax.sweep --config=configs/finetune.py:cifar10 --workdir=DIR \
    --set config.optimizer.learning_rate=0.001,0.003,0.01,0.03 \
    --config.init=B_16.npz '--config.data.test.split=train[98%:]'

Tasks of VTAB-1k (Zhai et al., arXiv:1910.04867) are called vtab-...; those
are missing whose label is not a field of the data set itself, and three large
ones.

Expected at 384 px, of models pre-trained on ImageNet-21k
(google-research/vision_transformer's README, without dropout):

           cifar10  cifar100  imagenet
  B/16       99.02     92.06     84.53
  B/32       98.88     92.31     81.66
  L/16       99.13     92.91     84.47
  L/32       99.06     93.29     81.89

and of L/16 (paper, table 2): pets 94.67, flowers 99.61, VTAB 72.72 as a mean
over all 19 tasks (at 384 px; table 2 has ImageNet 85.30 at 512 px).
Cost by formula (3 forward passes an image) of B/16 at 384 px, in exaFLOP:
imagenet 3.4, cifar10 and cifar100 1.7, pets and flowers 0.085, vtab 0.43; a
third of that at 224 px.
"""

from typing import NamedTuple

from ml_collections import ConfigDict


class Dataset(NamedTuple):
  """What to fine-tune on, and how."""

  source: str
  train: str
  examples: int
  test: str
  classes: int
  steps: int
  # Of those in table 4, the one that was best for B/32 (AugReg) in
  # big_vision. Compare on held-out images: 0.001, 0.003, 0.01 and 0.03, for
  # imagenet 0.003, 0.01, 0.03 and 0.06.
  learning_rate: float


def _vtab(source: str, train: str, test: str, classes: int) -> Dataset:
  """Returns a task of VTAB-1k, with the paper's one setting for all."""
  return Dataset(f'tfds:{source}', train, 1000, test, classes, 2500, 0.01)


DATASETS = {
  # What is left out of training is there to choose settings with.
  'imagenet': Dataset(
    'tfds:imagenet2012',
    'train[:99%]',
    1_268_355,
    'validation',
    1000,
    20_000,
    0.03,
  ),
  'cifar10': Dataset(
    'tfds:cifar10', 'train[:98%]', 49_000, 'test', 10, 10_000, 0.003
  ),
  'cifar100': Dataset(
    'tfds:cifar100', 'train[:98%]', 49_000, 'test', 100, 10_000, 0.01
  ),
  'pets': Dataset(
    'tfds:oxford_iiit_pet', 'train', 3_680, 'test', 37, 500, 0.003
  ),
  'flowers': Dataset(
    'tfds:oxford_flowers102', 'train', 1_020, 'test', 102, 500, 0.003
  ),
  # 800 examples of VTAB's training set and 200 of its validation set.
  'vtab-caltech101': _vtab(
    'caltech101', 'train[:800]+train[2751:2951]', 'test', 102
  ),
  'vtab-cifar100': _vtab(
    'cifar100', 'train[:800]+train[45000:45200]', 'test', 100
  ),
  'vtab-dtd': _vtab('dtd', 'train[:800]+validation[:200]', 'test', 47),
  'vtab-eurosat': _vtab(
    'eurosat/rgb', 'train[:800]+train[16200:16400]', 'train[80%:]', 10
  ),
  'vtab-flowers': _vtab(
    'oxford_flowers102', 'train[:800]+validation[:200]', 'test', 102
  ),
  'vtab-pets': _vtab(
    'oxford_iiit_pet', 'train[:800]+train[2944:3144]', 'test', 37
  ),
  'vtab-resisc45': _vtab(
    'resisc45', 'train[:800]+train[18900:19100]', 'train[80%:]', 45
  ),
  'vtab-svhn': _vtab(
    'svhn_cropped', 'train[:800]+train[65931:66131]', 'test', 10
  ),
}
VARIANTS = (
  *DATASETS,
  'cifar10,L/16,224',
  'cifar100,R50+B/16',
  'imagenet,L/16,512',
  'imagenet,H/14,518',
)


def _preprocess(name: str, size: int) -> tuple[str, str]:
  """Returns what is done to images in training and testing."""
  # The whole image, out of shape: this is what the README's figures had.
  whole = f'resize({size})|value_range(-1, 1)'
  if name.startswith('vtab-'):
    # No augmentation for any task: a mirrored digit is another one.
    return whole, whole
  return f'inception_crop({size})|flip_lr|value_range(-1, 1)', whole


def get_config(argument: str = 'cifar10') -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: DATASET[,MODEL[,RESOLUTION]], see the top of this file.
  """
  name, *rest = argument.split(',')
  if name not in DATASETS:
    raise ValueError(f'{name!r} is not one of {", ".join(DATASETS)}')
  if len(rest) > 2 or not all(word.isdecimal() for word in rest[1:]):
    raise ValueError(
      f'{argument!r} is not understood; write DATASET[,MODEL[,RESOLUTION]] '
      "such as 'cifar10,B/16,384'"
    )
  dataset = DATASETS[name]
  size = int(rest[1]) if len(rest) > 1 else 384
  train, test = _preprocess(name, size)
  return ConfigDict(
    dict(
      task=dict(name='classification'),
      # No hidden layer in the head, no dropout: both are for pre-training.
      model=dict(name='vit', variant=rest[0] if rest else 'B/16'),
      data=dict(
        train=dict(
          source=dataset.source, split=dataset.train, preprocess=train
        ),
        test=dict(source=dataset.source, split=dataset.test, preprocess=test),
        # ImageNet's large photographs have to be decoded fast; the others
        # are few or small.
        workers=16 if name == 'imagenet' else 0,
        expected=dict(
          train_examples=dataset.examples,
          classes=dataset.classes,
          image_shape=(size, size, 3),
        ),
      ),
      batch_size=512,
      total=f'{dataset.steps}steps',
      optimizer=dict(
        # No weight decay: the model is to stay near where it starts.
        name='sgd',
        momentum=0.9,
        learning_rate=dataset.learning_rate,
        clip_norm=1.0,
        average=0.9999 if name == 'imagenet' and size >= 512 else 0.0,
      ),
      # The paper does not tell the warm-up; that of its repository.
      schedule=dict(
        name='cosine', warmup='100steps' if dataset.steps == 500 else '500steps'
      ),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='10%'),
      checkpoint=dict(every='10%'),
      # The head starts fresh (at zero) for the new classes; what pre-training
      # has put before it is left out.
      init='PRETRAINED',
    )
  )
