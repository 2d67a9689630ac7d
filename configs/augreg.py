r"""How much augmentation and regularisation a ViT needs: the AugReg grid.

Steiner et al., "How to train your ViT?", arXiv:2106.10270, section 3. The
argument begins with the model; the rest, in any order, may be left out:

  augmentation    none light1 light2 medium1 medium2 strong1 strong2
                  (default: a good one for the model and the data)
  regularisation  reg (dropout and stochastic depth 0.1) or noreg (default)
  weight decay    wd0.1 (default) or wd0.03
  data            i1k (default) or i21k (see vit_imagenet21k.py for the data)

  python -m vit_jax.train --config=configs/augreg.py:B/16,medium2,reg \
    --workdir=DIR

Recipes have other numbers in the names of released files: light0 is light1
here and light1 is light2.

Expected: ImageNet top-1 after pre-training on i21k with the best setting and
fine-tuning at 384 px (table in google-research/vision_transformer's README):
Ti/16 78.22, S/32 79.58, S/16 83.73, B/32 83.59, B/16 85.49, L/16 85.59.
Cost by formula (3 forward passes an image) of 300 epochs on i1k, in exaFLOP:
Ti/16 3.1, S/32 2.6, S/16 11, B/32 10, B/16 41, L/16 143; 11 times that on
i21k.
"""

from ml_collections import ConfigDict

# RandAugment's (layers, magnitude) and the strength of mixup. Magnitude 0 is
# not nothing: some operations have none.
AUGMENTATIONS = {
  'none': (None, 0.0),
  'light1': ((2, 0), 0.0),
  'light2': ((2, 10), 0.2),
  'medium1': ((2, 15), 0.2),
  'medium2': ((2, 15), 0.5),
  'strong1': ((2, 20), 0.5),
  'strong2': ((2, 20), 0.8),
}
REGULARISATIONS = {'noreg': 0.0, 'reg': 0.1}
# In the paper's convention: times the learning rate.
WEIGHT_DECAYS = {'wd0.1': 0.1, 'wd0.03': 0.03}
DATA = {
  'i1k': dict(
    source='tfds:imagenet2012',
    # The rest is there to choose settings with (data.test.split =
    # 'train[99%:]'), so that validation stays a test set.
    train='train[:99%]',
    test='validation',
    # 99 % of 1,281,167.
    examples=1_268_355,
    classes=1000,
    # log(1 / classes): each class starts as unlikely as it is.
    head_bias=-6.9,
    representation_size=-1,
  ),
  'i21k': dict(
    source='tfds:imagenet21k',
    train='full[51200:]',
    test='full[:25600]',
    # 14,197,122 of the release of fall 2011, less those held out.
    examples=14_145_922,
    classes=21_843,
    head_bias=-10.0,
    # The released files have no hidden layer in the head.
    representation_size=0,
  ),
}
# For each model: augmentations that are good in both 30 and 300 epochs, on
# i1k and i21k, and micro-batches: with these the activations should fit the
# 16 GB of a TPU v3 core when there are 8 of them.
MODELS = {
  'Ti/16': ('light1', 'none', 1),
  'S/32': ('medium1', 'none', 1),
  'S/16': ('medium2', 'light1', 4),
  'B/32': ('medium2', 'light2', 1),
  'B/16': ('medium2', 'light2', 8),
  'L/16': ('medium2', 'medium2', 16),
}
WORDS = (AUGMENTATIONS, REGULARISATIONS, WEIGHT_DECAYS, DATA)
VARIANTS = tuple(MODELS) + tuple(
  ','.join((model, augmentation, regularisation, decay, data))
  for model in MODELS
  for augmentation in AUGMENTATIONS
  for regularisation in REGULARISATIONS
  for decay in WEIGHT_DECAYS
  for data in DATA
)


def _parse(argument: str) -> tuple[str, str, str, str, str]:
  """Returns model, augmentation, regularisation, weight decay and data."""
  model, *words = argument.split(',')
  if model not in MODELS:
    raise ValueError(
      f'{argument!r} has to begin with one of {", ".join(MODELS)}'
    )
  known = [word for choices in WORDS for word in choices]
  for word in words:
    if word not in known:
      raise ValueError(f'{word!r} in {argument!r} is not one of {known}')
  chosen = []
  for choices in WORDS:
    said = [word for word in words if word in choices]
    if len(said) > 1:
      raise ValueError(f'{argument!r} has both {" and ".join(said)}')
    chosen.append(said[0] if said else None)
  augmentation, regularisation, decay, data = chosen
  data = data or 'i1k'
  default = MODELS[model][list(DATA).index(data)]
  return (
    model,
    augmentation or default,
    regularisation or 'noreg',
    decay or 'wd0.1',
    data,
  )


def get_config(argument: str = 'B/16') -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: what to train and how, see the top of this file.
  """
  model, augmentation, regularisation, decay, data = _parse(argument)
  data = DATA[data]
  randaugment, mixup = AUGMENTATIONS[augmentation]
  rate = REGULARISATIONS[regularisation]
  augment = f'randaugment{randaugment}|' if randaugment else ''
  return ConfigDict(
    dict(
      task=dict(name='classification', loss_function='sigmoid', mixup=mixup),
      model=dict(
        name='vit',
        variant=model,
        representation_size=data['representation_size'],
        # Not on attention weights (the author,
        # google-research/vision_transformer issue 154).
        dropout=rate,
        stochastic_depth=rate,
        head_bias=data['head_bias'],
      ),
      data=dict(
        train=dict(
          source=data['source'],
          split=data['train'],
          preprocess=(
            f'inception_crop(224)|flip_lr|{augment}value_range(-1, 1)'
          ),
        ),
        test=dict(
          source=data['source'],
          split=data['test'],
          preprocess='resize_small(256)|central_crop(224)|value_range(-1, 1)',
        ),
        # A v3 host has to decode some thousand images a second.
        workers=16,
        expected=dict(
          train_examples=data['examples'],
          classes=data['classes'],
          image_shape=(224, 224, 3),
        ),
      ),
      batch_size=4096,
      total='300ep',
      optimizer=dict(
        name='adamw',
        learning_rate=1e-3,
        weight_decay=WEIGHT_DECAYS[decay],
        clip_norm=1.0,
        # As in big_vision: half the memory of the first moment.
        moment_dtype='bfloat16',
        accumulate=MODELS[model][-1],
      ),
      schedule=dict(name='cosine', warmup='10000steps'),
      # Half the memory traffic; parameters and updates stay float32.
      precision=dict(compute='bfloat16'),
      eval=dict(every='2500steps'),
      checkpoint=dict(every='2500steps'),
    )
  )
