r"""What learning without labels is worth: small runs that differ in how.

The argument is METHOD,DATA[,PATH]. Methods:

  masked_patches  predicts corrupted patches (configs/masked_patches.py)
  byol            learns from two views of images (configs/byol.py)
  supervised      classification by the labels

DATA is fashion_mnist (28x28 grey, 10 classes) or emoji (64x64, drawings of
five styles; the class is the group of a concept, and test concepts are never
seen in training). It lies in data/, or where PATH says:

  python -m vit_jax.train \
    --config=configs/without_labels.py:byol,fashion_mnist --workdir=runs/byol

The features, by a linear classifier and by a few examples of each class:

  python -m vit_jax.evaluate --workdir=runs/byol --tasks=linear_probe \
    --source=idx:data/fashion-mnist
  python -m vit_jax.few_shot --workdir=runs/byol --shots=25

Expected: the table in the README, "Without labels".
Cost: 4 to 19 minutes of one core a run, BYOL the most.
"""

from ml_collections import ConfigDict

METHODS = ('masked_patches', 'byol', 'supervised')
PATHS = {
  'fashion_mnist': 'data/fashion-mnist', 'emoji': 'data/emoji64.tar.gz'
}  # fmt: skip
VARIANTS = tuple(f'{method},{data}' for method in METHODS for data in PATHS) + (
  'byol,emoji,data/emoji64.tar.gz',
)

# Of the two views, the second is also solarised. The rest is what each method
# needs not to find a short cut.
VIEWS = {
  'fashion_mnist': (
    'inception_crop(28, 0.3)|flip_lr|color_jitter|blur(0.5, 0.1, 1.0)'
  ),
  'emoji': (
    'inception_crop(64, 0.2)|flip_lr|color_jitter|grayscale|blur(0.5, 0.1, 1.0)'
  ),
}
PLAIN = {
  'fashion_mnist': 'flip_lr', 'emoji': 'inception_crop(64, 0.4)|flip_lr'
}  # fmt: skip
# Every method sees every image as often.
LENGTHS = {'fashion_mnist': '2ep', 'emoji': '6ep'}


def get_config(argument: str = VARIANTS[0]) -> ConfigDict:
  """Returns the configuration.

  Args:
    argument: METHOD,DATA[,PATH], see the top of this file.
  """
  method, _, rest = argument.partition(',')
  name, _, path = rest.partition(',')
  if method not in METHODS or name not in PATHS:
    raise ValueError(
      f'{argument!r} is not understood; expected METHOD,DATA with one of '
      f'{", ".join(METHODS)} and one of {", ".join(PATHS)}, such as '
      f'{VARIANTS[0]}'
    )
  path = path or PATHS[name]
  config = ConfigDict()
  config.task = _task(method, name)
  # 49 or 64 tokens.
  config.model = dict(
    name='vit', patch_size=4 if name == 'fashion_mnist' else 8, width=96,
    depth=4, mlp_dim=192, num_heads=4, pooling='gap', position='sincos_2d',
  )  # fmt: skip
  config.data = _data(method, name, path)
  config.batch_size = 128
  config.total = LENGTHS[name]
  config.optimizer = dict(
    name='muon', learning_rate=2e-3, weight_decay=0.05, clip_norm=1.0
  )
  config.schedule = dict(name='cosine', warmup='5%')
  config.eval = dict(every='50%', batch_size=512)
  config.checkpoint = dict(every='50%')
  config.log_every = '50steps'
  return config


def _task(method: str, name: str) -> dict[str, object]:
  """Returns the task and its settings."""
  if method == 'masked_patches':
    # Grey has few classes: there the pixels say more.
    target = 'pixels' if name == 'fashion_mnist' else 'mean_color'
    return dict(name='masked_patches', target=target)
  if method == 'byol':
    # A target that moves fast: the run is short.
    return dict(name='byol', hidden=256, projection=64, target_decay=0.97)
  return dict(name='classification')


def _data(method: str, name: str, path: str) -> dict[str, object]:
  """Returns what is trained on, and the test data."""
  source, examples, shape = {
    'fashion_mnist': (f'idx:{path}', 60_000, (28, 28, 1)),
    'emoji': (f'field:group:captions:{path}', 7_769, (64, 64, 3)),
  }[name]
  to_range = 'value_range(-1, 1)'
  train = dict(source=source, split='train')
  if method == 'byol':
    train |= dict(
      preprocess=f'{VIEWS[name]}|{to_range}',
      second_view=f'{VIEWS[name]}|solarize(0.2)|{to_range}',
    )
  else:
    train |= dict(preprocess=f'{PLAIN[name]}|{to_range}')
  return dict(
    train=train,
    test=dict(source=source, split='test', preprocess=to_range),
    expected=dict(train_examples=examples, image_shape=shape),
  )
