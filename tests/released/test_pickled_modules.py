"""Whole modules of torch, as OpenAI's dVAE comes, are read without torch."""

import struct
import zipfile

import numpy as np
import pytest

from vit_jax import released

NAMES = {
  'encoder': ('blocks.input.w', 'blocks.output.conv.b'),
  'decoder': ('blocks.input.b',),
}
NO_ARGUMENTS = b')\x81'
ORDERED = b'ccollections\nOrderedDict\n)R'


def text(value):
  return b'X' + struct.pack('<I', len(value)) + value.encode()


def of_class(name, state):
  """Returns the pickle of an object of a class that has a state."""
  items = b''.join(text(key) + item for key, item in state.items())
  return b'c' + name + b'\n' + NO_ARGUMENTS + b'}(' + items + b'ub'


def dictionary(items):
  pairs = b''.join(text(key) + item for key, item in items.items())
  return ORDERED + b'(' + pairs + b'u'


def parameter(key, size):
  storage = b'(' + text('storage') + b'ctorch\nFloatStorage\n' + text(key)
  storage += text('cpu') + b'K' + bytes([size]) + b'tQ'
  view = b'K\x00' + b'K' + bytes([size]) + b'\x85K\x01\x85\x89' + ORDERED
  tensor = b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + view + b'tR'
  rebuild = b'ctorch._utils\n_rebuild_parameter\n('
  return rebuild + tensor + b'\x89' + ORDERED + b'tR'


def module(name, children, parameters=None):
  return of_class(
    name,
    {
      'training': b'\x89',
      'device': b'ctorch\ndevice\n' + text('cpu') + b'\x85R',
      '_non_persistent_buffers_set': b'c__builtin__\nset\n]\x85R',
      '_parameters': dictionary(parameters or {}),
      '_modules': dictionary(children),
    },
  )


def pickled(names):
  """Returns the pickle of nested modules that have these parameters."""
  tree = {}
  for key, name in enumerate(names):
    *path, leaf = name.split('.')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[leaf] = parameter(str(key), 3)

  def build(node):
    if all(isinstance(value, bytes) for value in node.values()):
      return module(b'dall_e.utils\nConv2d', {}, node)
    children = {name: build(child) for name, child in node.items()}
    return module(b'torch.nn.modules.container\nSequential', children)

  return b'\x80\x02' + build(tree) + b'.'


def write(path, names, pickle=None):
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('x/data.pkl', pickle or pickled(names))
    for key in range(len(names)):
      file.writestr(f'x/data/{key}', np.float32([key, 1, 2]).tobytes())


def test_tensors_have_the_names_of_a_state_dict(tmp_path):
  for side, names in NAMES.items():
    write(tmp_path / f'{side}.pkl', names)
  found = released.tensors(tmp_path)
  assert set(found) == {
    f'{side}.{name}' for side, names in NAMES.items() for name in names
  }
  np.testing.assert_array_equal(
    found['encoder.blocks.output.conv.b'], np.float32([1, 1, 2])
  )


@pytest.mark.parametrize(
  'name', [b'dall_e.utils\nConv2d.run', b'torch.nn\nModule', b'os\nsystem']
)
def test_other_classes_are_refused(name, tmp_path):
  for side, names in NAMES.items():
    safe = pickled(names)
    write(
      tmp_path / f'{side}.pkl', names,
      safe.replace(b'dall_e.utils\nConv2d', name),
    )  # fmt: skip
  with pytest.raises(released.ReleasedError, match='refused'):
    released.tensors(tmp_path)
