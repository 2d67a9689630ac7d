"""The weights that FID is measured with, in the files that they come in."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vit_jax import released
from vit_jax.config import ConfigError
from vit_jax.models.inception import InceptionV3
from vit_jax.released import inception
from vit_jax.training import saved


def test_shapes_are_those_of_the_model():
  image = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
  tree = jax.eval_shape(InceptionV3().init, jax.random.key(0), image)
  flat = flax.traverse_util.flatten_dict({**tree['params']}, sep='/')
  flat |= flax.traverse_util.flatten_dict({**tree['batch_stats']}, sep='/')
  expected = {path: x.shape for path, x in flat.items()}
  assert inception.of_model() == expected


def test_names_are_those_of_the_published_file():
  shapes = {slot.name: slot.shape for slot in inception.slots().values()}
  assert len(shapes) == 94 * 5 + 2
  assert sum(map(np.prod, shapes.values())) == 23_885_392
  for name, shape in {
    'Conv2d_1a_3x3.conv.weight': (32, 3, 3, 3),
    'Mixed_5b.branch1x1.conv.weight': (64, 192, 1, 1),
    'Mixed_6c.branch7x7_2.conv.weight': (160, 160, 1, 7),
    'Mixed_6c.branch7x7_3.conv.weight': (192, 160, 7, 1),
    'Mixed_7a.branch7x7x3_4.bn.running_var': (192,),
    'Mixed_7c.branch3x3dbl_3b.bn.running_mean': (384,),
    'Mixed_7c.branch_pool.bn.weight': (192,),
    'Mixed_7c.branch_pool.bn.bias': (192,),
    'fc.weight': (1008, 2048),
    'fc.bias': (1008,),
  }.items():
    assert shapes[name] == shape, name


@pytest.fixture(scope='module')
def tensors():
  """Different numbers for each tensor, and what nobody reads."""
  rng = np.random.default_rng(0)
  found = {}
  for slot in inception.slots().values():
    values = rng.normal(size=64).astype(np.float32)
    found[slot.name] = np.resize(values, slot.shape)
    if slot.name.endswith('running_var'):
      counter = slot.name.replace('running_var', 'num_batches_tracked')
      found[counter] = np.zeros((), np.int64)
  return found


@pytest.mark.parametrize(
  'name', ['x.npz', 'x.safetensors', 'x.pth', 'before_1_6.pth']
)
def test_every_file_is_read(name, tensors, tools, tmp_path):
  path = tmp_path / name
  if path.suffix == '.npz':
    np.savez(path, **tensors)
  elif path.suffix == '.safetensors':
    safetensors.numpy.save_file(tensors, path)
  else:
    tools.write_torch(path, tensors, bare=name.startswith('before'))
  found = released.read(path)
  assert found.model == {'name': 'inception_v3'}
  assert (found.num_classes, found.image_shape) == (1008, (299, 299, 3))
  assert any('num_batches_tracked' in note for note in found.notes)
  arrays = found.params | found.statistics
  assert arrays.keys() == inception.of_model().keys()
  assert {path.rpartition('/')[2] for path in found.statistics} == {
    'mean', 'var'
  }  # fmt: skip
  for ours, theirs in {
    'Mixed_7a/branch7x7x3_2/conv/kernel': (
      tensors['Mixed_7a.branch7x7x3_2.conv.weight'].transpose(2, 3, 1, 0)
    ),
    'Mixed_5b/branch1x1/norm/scale': tensors['Mixed_5b.branch1x1.bn.weight'],
    'Mixed_5b/branch1x1/norm/var': tensors['Mixed_5b.branch1x1.bn.running_var'],
    'head/kernel': tensors['fc.weight'].T,
  }.items():
    np.testing.assert_array_equal(arrays[ours], theirs, ours)
  if path.suffix == '.npz':
    with pytest.raises(ConfigError, match='evaluate --network=FILE'):
      saved.read(path)
    with pytest.raises(released.ReleasedError, match='only read'):
      released.write(tmp_path / 'y.npz', found, 'google')


@pytest.mark.parametrize(
  'name,shape,message',
  [
    ('fc.bias', None, r'fc\.bias +\(1008,\) +nothing'),
    ('fc.weight', (1000, 2048), r'fc\.weight +\(1008, 2048\) +\(1000, 2048\)'),
    (
      'AuxLogits.conv0.conv.weight',
      (128, 768, 1, 1),
      r'AuxLogits\.conv0\.conv\.weight +nothing +\(128, 768, 1, 1\)',
    ),
  ],
)
def test_what_does_not_fit_is_refused_by_name(name, shape, message):
  found = {
    slot.name: np.broadcast_to(np.float32(0), slot.shape)
    for slot in inception.slots().values()
  }
  found.pop(name, None)
  if shape:
    found[name] = np.broadcast_to(np.float32(0), shape)
  with pytest.raises(released.ReleasedError, match='1 tensors do not') as error:
    inception.read(found, None)
  assert error.match(message)
