"""Archives of torch are read without torch, and nothing in them is run."""

import pathlib
import pickle
import zipfile
import zlib

import numpy as np
import pytest

from vit_jax import released
from vit_jax.released import torchscript

# A tiny model with the names of OpenAI's CLIP that torch.jit.save has written,
# without the folder `code`. Each tensor is the float16 normal numbers that
# follow from its name.
PATH = pathlib.Path(__file__).parents[1] / 'goldens' / 'clip_torchscript.pt'
HEADS = {'image_heads': 2, 'text_heads': 4}


def test_tensors_are_those_that_torch_has_written():
  tensors, classes = torchscript.read(PATH)
  assert {'CLIP', 'QuickGELU', 'LayerNorm'} <= classes
  assert tensors.pop('input_resolution') == 8
  assert tensors['visual.conv1.weight'].dtype == np.float16
  assert tensors['visual.ln_pre.weight'].dtype == np.float32
  floats = {k: v for k, v in tensors.items() if v.dtype.kind == 'f'}
  assert len(floats) == 50
  for name, found in floats.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    expected = np.asarray(rng.normal(size=found.shape)).astype(np.float16)
    np.testing.assert_array_equal(found, expected.astype(found.dtype), name)


def test_a_clip_is_read_with_its_activation(tmp_path):
  found = released.read(PATH, told=HEADS)
  assert found.model['text']['activation'] == 'quick_gelu'
  assert found.image_shape == (8, 8, 3)
  assert any('Stored as float16; made' in note for note in found.notes)
  assert any('input_resolution' in note for note in found.notes)
  # Where its classes do not say it, it has to be told.
  other = changed(tmp_path, {b'QuickGELU': b'OtherGELU'})
  with pytest.raises(released.ReleasedError, match='activation is None'):
    released.read(other, told=HEADS)
  told = {**HEADS, 'activation': 'gelu'}
  assert released.read(other, told=told).model['image']['activation'] == 'gelu'


def changed(tmp_path, replacements=None, pickled=None, drop=()):
  """Writes a copy of the archive in which something is not as it was."""
  path = tmp_path / 'x.pt'
  with zipfile.ZipFile(PATH) as old, zipfile.ZipFile(path, 'w') as new:
    for name in old.namelist():
      data = old.read(name)
      if name.endswith('data.pkl'):
        for before, after in (replacements or {}).items():
          assert before in data
          data = data.replace(before, after)
        data = data if pickled is None else pickled
      if not name.endswith(drop or ('none',)):
        new.writestr(name, data)
  return path


class Runs:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


REBUILD = b'torch._utils\n_rebuild_tensor_v2\n'
REFUSED = [
  ({REBUILD: b'os\nsystem\n'}, 'asks to call .os system.* refused'),
  # An attribute of what may be called is not.
  ({REBUILD: b'torch._utils\n_import_dotted_name\n'}, 'asks to call'),
  ({b'collections\nOrderedDict\n': b'builtins\neval\n'}, 'builtins eval'),
  ({b'torch\nHalfStorage\n': b'torch\nOtherStorage\n'}, 'OtherStorage'),
  ({b'torch\nHalfStorage\n': b'torch\nFloatStorage\n'}, 'numbers of float32'),
]


@pytest.mark.parametrize('replacements,message', REFUSED)
def test_only_tensors_are_rebuilt(replacements, message, tmp_path):
  path = changed(tmp_path, replacements)
  with pytest.raises(released.ReleasedError, match=message):
    released.read(path)


@pytest.mark.parametrize('protocol', [0, 1, 2, 4, 5])
def test_what_would_run_is_not_run(protocol, tmp_path):
  trace = tmp_path / 'trace'
  pickled = pickle.dumps({'a': Runs(trace)}, protocol)
  with pytest.raises(released.ReleasedError, match='refused'):
    released.read(changed(tmp_path, pickled=pickled))
  assert not trace.exists()
  pickle.loads(pickled)
  assert trace.exists()


def test_damaged_archives(tmp_path):
  for change, message in (
    (dict(drop=('data/7',)), 'is damaged'),
    (dict(drop=('data.pkl',)), 'no zip archive of torch with one'),
    (dict(pickled=b''), 'is damaged'),
    (dict(pickled=b'\x80\x02}'), 'damaged'),
    (dict(pickled=b'\x80\x02\x86.'), 'takes more than it has'),
    (dict(pickled=b'\x80\x02)}b.'), 'what is no dict'),
    (dict(pickled=pickle.dumps([1], 2)), 'is damaged'),
  ):
    path = changed(tmp_path, **change)
    with pytest.raises(released.ReleasedError, match=message):
      released.read(path)
  path.write_bytes(PATH.read_bytes()[:5000])
  with pytest.raises(released.ReleasedError, match='is damaged'):
    released.read(path)
  # A dict that is in itself.
  loop = b'\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.'
  assert pickle.loads(loop)['a']['a'] is not None
  with pytest.raises(released.ReleasedError, match='more than 100,000 parts'):
    released.read(changed(tmp_path, pickled=loop))


@pytest.mark.parametrize(
  'offset,shape,strides,message',
  [
    (1, (2, 3), (3, 1), 'reaches beyond its 6 numbers'),
    (0, (2, 3), (4, 1), 'reaches beyond'),
    (0, (9, 9), (0, 0), 'reaches beyond'),
    (-1, (2,), (1,), '-1 for a size'),
    (0, (2,), (-1,), '-1 for a size'),
    (0, (2.0,), (1,), '2.0 for a size'),
    (0, (2,), (), 'sizes .2,., but strides'),
  ],
)
def test_tensors_stay_inside_their_storage(offset, shape, strides, message):
  with pytest.raises(released.ReleasedError, match=message):
    torchscript._view(np.arange(6.0), offset, shape, strides)


def test_strides_are_those_of_torch():
  found = torchscript._view(np.arange(6.0), 1, (2, 2), (1, 2))
  np.testing.assert_array_equal(found, [[1, 3], [2, 4]])
  assert torchscript._view(np.arange(6.0), 6, (0, 3), (3, 1)).shape == (0, 3)


SOME = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.count': np.array(7),
  'b': np.float32([5]),
}


@pytest.mark.parametrize('bare', [False, True])
def test_state_dicts_are_read_whatever_torch_wrote_them(bare, tools, tmp_path):
  path = tmp_path / 'x.pth'
  tools.write_torch(path, SOME, bare)
  tensors, _ = torchscript.read(path)
  tools.assert_same(tensors, SOME)


def test_damaged_files_of_before_1_6(tools, tmp_path):
  path = tmp_path / 'x.pth'
  tools.write_torch(path, SOME, bare=True)
  whole = path.read_bytes()
  last = whole.index(pickle.dumps(['0', '1', '2'], 2))
  trace = tmp_path / 'trace'
  for damaged, message in (
    (whole[:-1], 'storage 2 should have 1 numbers of float32, but has 3 bytes'),
    (whole[:-9], 'is damaged'),
    (whole[:last], 'is damaged'),
    (whole[: last - 5], 'is damaged'),
    (whole[:5], 'is damaged'),
    (whole.replace(b'\x06\0\0\0\0\0\0\0', b'\x05' + bytes(7)), 'has 5'),
    # Before so much memory is taken.
    (whole.replace(b'cpuJ\x06\0\0', b'cpuJ\x06\0\x7f'), 'larger than the'),
    (whole.replace(b'cpuJ\x06', b'cpuJ\xff'), 'larger than the file'),
    (
      whole.replace(pickle.dumps(['0', '1', '2'], 2), b']q\0.'),
      'other storages',
    ),
    (whole.replace(b'_rebuild_tensor_v2', b'system'), 'refused'),
    (
      whole[:15] + pickle.dumps(Runs(trace), 2) + whole[15:],
      'refused',
    ),
  ):
    path.write_bytes(damaged)
    with pytest.raises(released.ReleasedError, match=message):
      torchscript.read(path)
  assert not trace.exists()
  tools.write_torch(path, SOME, bare=True, little_endian=False)
  with pytest.raises(released.ReleasedError, match='big-endian'):
    torchscript.read(path)
