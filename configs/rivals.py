r"""ViT, hybrid and ResNet at equal compute on Fashion-MNIST, in four sizes.

The ViT paper's comparison (arXiv:2010.11929, section 4.4 and figures 4 and 5)
at a size that a CPU can train. The argument is KIND-SIZE. Kinds of one size
need the same arithmetic for an image, to a tenth, and see as many images.

  python -m vit_jax.train --config=configs/rivals.py:vit-M --workdir=runs/vit-M

The data lies in data/fashion-mnist, see fashion_mnist.py; for another folder
set --config.data.train.source=idx:DIR, and the same for test.

Accuracy against the size of the training set, for each KIND, and the plot:

  python -m vit_jax.sweep --config=configs/rivals.py:KIND-M --run \
    --workdir=runs/data/KIND --config.data.expected.train_examples=None --set \
    'config.data.train.split=train[:1000],train[:4000],train[:16000],train'
  python -m vit_jax.analyze study --workdir=runs/data --x=examples --out=DIR

Accuracy against compute: train every KIND-SIZE into runs/compute/KIND/SIZE,
and plot with --x=exaflops. The paper's own sizes are in vit_jft.py.

Class token against average pooling, over learning rates; and what tells where
a patch was, and where that is told:

  python -m vit_jax.sweep --config=configs/rivals.py:vit-S --run \
    --workdir=runs/pooling --set config.model.pooling=token,gap \
    --set config.optimizer.learning_rate=0.001,0.003,0.01,0.03
  python -m vit_jax.analyze study --workdir=runs/pooling --out=DIR \
    --x=config.optimizer.learning_rate --lines=config.model.pooling
  python -m vit_jax.sweep --config=configs/rivals.py:vit-S --run \
    --workdir=runs/position --set config.model.position=learned,learned_2d \
    --set config.model.position_at=stem,every_layer,shared
  python -m vit_jax.analyze study --workdir=runs/position --out=DIR \
    --x=config.model.position --lines=config.model.position_at

with position=none, and with position=relative at every_layer and shared, in
two sweeps more of the same workdir.

What is in the README had, everywhere, --config.total=60000examples,
--config.eval.every=100% and --config.checkpoint.every=100%.

Expected: the README's section "Studies"; nothing is published at this size.
Cost of training, by arithmetic, for an image: XS 13, S 48, M 100, L 260 MFLOP;
10 epochs of 60,000 images are 8, 29, 60 and 156 TFLOP.
"""

import pathlib
import runpy

from ml_collections import ConfigDict


def _vit(width: int, depth: int) -> dict:
  return dict(width=width, depth=depth, mlp_dim=2 * width)


def _hybrid(width: int, depth: int, stages: tuple) -> dict:
  # The root alone takes 28 pixels to the 7 x 7 places of 4 x 4 patches.
  return dict(
    _vit(width, depth),
    patch_size=1,
    backbone_stages=stages,
    backbone_width_factor=0.5,
  )


def _resnet(stages: tuple, width_factor: float) -> dict:
  # The form that the hybrids have.
  return dict(stages=stages, width_factor=width_factor, form='post_activation')


MODELS = {
  'vit-XS': _vit(32, 4),
  'vit-S': _vit(64, 4),
  'vit-M': _vit(96, 4),
  'vit-L': _vit(128, 6),
  'hybrid-XS': _hybrid(32, 3, ()),
  'hybrid-S': _hybrid(64, 4, ()),
  'hybrid-M': _hybrid(96, 4, (1,)),
  'hybrid-L': _hybrid(128, 6, (1,)),
  'resnet-XS': _resnet((2,), 0.5),
  'resnet-S': _resnet((2, 2, 2), 0.5),
  'resnet-M': _resnet((1, 2), 1.0),
  'resnet-L': _resnet((3, 3, 3), 1.0),
}
VARIANTS = tuple(MODELS)


def get_config(variant: str = 'vit-M') -> ConfigDict:
  """Returns the configuration.

  Args:
    variant: kind and size, one of VARIANTS.
  """
  if variant not in MODELS:
    raise ValueError(f'{variant!r} is not one of {", ".join(VARIANTS)}')
  file = pathlib.Path(__file__).with_name('fashion_mnist.py')
  config = runpy.run_path(str(file))['get_config']()
  if variant.startswith('resnet'):
    config.model = ConfigDict(dict(name='resnet'))
  config.model.update(MODELS[variant])
  # One that suits all kinds; Muon has matrices in mind.
  config.optimizer = ConfigDict(
    dict(name='adamw', learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0)
  )
  # As many images whatever there is to choose from: 10 epochs of all.
  config.total = '600000examples'
  config.eval.every = '20%'
  config.checkpoint.every = '20%'
  return config
