"""Models to convert, with noise in every tensor, and files of torch."""

import math
import pickle
import struct
import types
import zipfile

import jax
import numpy as np
import pytest

from vit_jax import released
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT

MODELS = {'vit': ViT, 'resnet': ResNet, 'mixer': Mixer}
VIT = dict(
  name='vit', patch_size=4, width=24, depth=2, mlp_dim=20, num_heads=3,
)  # fmt: skip
EXAMPLES = {
  'token': VIT,
  'representation': {**VIT, 'representation_size': 10},
  'map': {**VIT, 'pooling': 'map'},
  'gap': {**VIT, 'pooling': 'gap'},
  'sincos': {**VIT, 'pooling': 'gap', 'position': 'sincos_2d'},
  'hybrid': {
    **VIT,
    'patch_size': 1,
    'backbone_stages': (1, 2),
    'backbone_width_factor': 0.5,
  },
  'mixer': dict(
    name='mixer', patch_size=4, width=24, depth=2, token_mlp_dim=12,
    channel_mlp_dim=20,
  ),
  'pre_activation': dict(name='resnet', stages=(1, 2), width_factor=0.5),
  'post_activation': dict(
    name='resnet', stages=(1, 2), width_factor=0.5, form='post_activation'
  ),
}  # fmt: skip


def make(model, num_classes=5):
  """Returns the module of a section `model`."""
  fields = {key: value for key, value in model.items() if key != 'name'}
  return MODELS[model['name']](num_classes=num_classes, **fields)


def example(name, image_shape=(16, 24, 3), num_classes=5):
  """Returns a checkpoint of one of EXAMPLES, in memory."""
  model = EXAMPLES[name] if isinstance(name, str) else name
  image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  tree = jax.eval_shape(make(model, num_classes).init, key, image)['params']
  rng = np.random.default_rng(0)
  params = {
    '/'.join(part.key for part in path): rng.normal(
      0.1, 0.3, leaf.shape
    ).astype(np.float32)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }
  return released.of_parameters(
    params,
    model={
      'pooling': 'token', 'position': 'learned', 'position_at': 'stem',
      'activation': 'gelu_tanh', 'norm_epsilon': 1e-6,
      'form': 'pre_activation', **model,
    } ,
    image_shape=image_shape,
    class_names=[f'c{i}' for i in range(num_classes)],
    preprocess='resize((16, 24))|value_range(-1, 1)',
  )  # fmt: skip


def assert_same(found, expected):
  """Asserts that two dicts of arrays are equal to the last bit."""
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name].dtype == value.dtype, name
    assert found[name].shape == value.shape, name
    assert found[name].tobytes() == value.tobytes(), name


STORAGES = {'float32': 'FloatStorage', 'int64': 'LongStorage'}


def pickled(tensors, bare=False):
  """Returns the pickle of a state dict, as torch writes it."""
  ordered = b'ccollections\nOrderedDict\n)R'

  def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()

  def number(value):
    return b'J' + struct.pack('<i', value)

  def numbers(values):
    return b'(' + b''.join(map(number, values)) + b't'

  def tensor(key, value):
    kind = STORAGES[value.dtype.name]
    storage = b'(' + text('storage') + f'ctorch\n{kind}\n'.encode()
    storage += text(key) + text('cpu') + number(value.size)
    storage += (b'N' if bare else b'') + b'tQ'
    steps = [math.prod(value.shape[i + 1 :]) for i in range(value.ndim)]
    view = number(0) + numbers(value.shape) + numbers(steps)
    rebuild = b'ctorch._utils\n_rebuild_tensor_v2\n('
    return rebuild + storage + view + b'\x89' + ordered + b'tR'

  pairs = (
    text(name) + tensor(str(key), value)
    for key, (name, value) in enumerate(tensors.items())
  )
  metadata = b'}' + text('_metadata') + ordered + b'sb'
  return b'\x80\x02' + ordered + b'(' + b''.join(pairs) + b'u' + metadata + b'.'


def write_torch(path, tensors, bare=False, little_endian=True):
  """Writes tensors as torch.save does; `bare` as it did before 1.6."""
  if not bare:
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr('x/data.pkl', pickled(tensors))
      for key, value in enumerate(tensors.values()):
        file.writestr(f'x/data/{key}', value.tobytes())
    return
  system = {'protocol_version': 1001, 'little_endian': little_endian}
  keys = [str(key) for key in range(len(tensors))]
  with path.open('wb') as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
      file.write(pickle.dumps(value, 2))
    file.write(pickled(tensors, bare) + pickle.dumps(keys, 2))
    for value in tensors.values():
      file.write(struct.pack('<q', value.size) + value.tobytes())


@pytest.fixture
def tools():
  """What several files of tests use."""
  return types.SimpleNamespace(
    EXAMPLES=EXAMPLES, make=make, example=example, assert_same=assert_same,
    write_torch=write_torch,
  )  # fmt: skip
