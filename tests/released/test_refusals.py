"""Files that are not what they should be, and models that files cannot hold."""

import io
import zipfile

import numpy as np
import pytest

from vit_jax import released
from vit_jax.released import archive

BROKEN = [
  (
    lambda x: x.pop('Transformer/posembed_input/pos_embedding'),
    'cannot be told without position/embedding',
  ),
  (lambda x: x.pop('head/kernel'), 'head/kernel +.* +nothing'),
  (lambda x: x.update({'a/b': x['cls']}), r'a/b +nothing +\(1, 1, 24\)'),
  (
    lambda x: x.update({'head/kernel': x['head/kernel'][:9]}),
    r'head/kernel +\(24, 5\) +\(9, 5\)',
  ),
  (
    lambda x: [x.pop(k) for k in list(x) if 'block_0/' in k],
    'cannot be told without encoder/block_00',
  ),
  (lambda x: x.update(cls=x['cls'][0]), r'cls +\(1, 1, 24\) +\(1, 24\)'),
  (lambda x: x.update(cls=x['cls'].astype(int)), 'cls holds int64, expected'),
  (
    lambda x: x.update(cls=np.array([{}], dtype=object)),
    'Python objects.*refused',
  ),
  (
    lambda x: x.update({f'b/{k}': v for k, v in x.items()}),
    'several models, under , b/',
  ),
  (
    lambda x: x.update({'Transformer/encoderblock/a': np.ones(3)}),
    'encoderblock_2/LayerNorm_0/scale',
  ),
  (
    lambda x: x.update({'embedding/kernel': x['embedding/kernel'][:2]}),
    'Patches are 2x4 pixels',
  ),
]


@pytest.mark.parametrize('change,message', BROKEN)
def test_what_does_not_fit_is_refused_by_name(change, message, tools, tmp_path):
  path = tmp_path / 'x.npz'
  released.write(path, tools.example('token'), 'google')
  tensors = released.tensors(path)
  change(tensors)
  np.savez(path, **tensors)
  with pytest.raises(released.ReleasedError, match=message):
    released.read(path, grid=(4, 6))


def test_other_files_are_refused(tmp_path, monkeypatch):
  path = tmp_path / 'x.npz'
  np.savez(path, **{'some/name': np.ones(1000), 'other': np.ones(2)})
  with pytest.raises(released.ReleasedError, match='known here.*some/name'):
    released.read(path)
  with pytest.raises(released.ReleasedError, match='expected model.safetens'):
    released.read(tmp_path)
  with pytest.raises(FileNotFoundError):
    released.read(tmp_path / 'none.npz')
  whole = path.read_bytes()
  for damaged in (whole[:-30], whole[:500], whole[:300] + b'x' + whole[301:]):
    path.write_bytes(damaged)
    with pytest.raises(released.ReleasedError, match='is damaged'):
      released.read(path)
  # An array whose header claims more than there is, with a valid checksum.
  array = io.BytesIO()
  np.save(array, np.ones(1000))
  with zipfile.ZipFile(path, 'w') as archived:
    claim = array.getvalue().replace(b'(1000,)', b'(9000,)')
    archived.writestr('x.npy', claim)
  with pytest.raises(released.ReleasedError, match='72,000 bytes'):
    released.read(path)
  np.savez_compressed(path, zeros=np.zeros(100_000))
  monkeypatch.setattr(archive, '_SMALL', 1000)
  with pytest.raises(released.ReleasedError, match='would unpack to'):
    released.read(path)


IMPOSSIBLE = [
  ('map', 'google', "pooling is 'map', can be 'token' or 'gap'"),
  ('sincos', 'google', "position is 'sincos_2d'"),
  ('hybrid', 'big_vision', 'backbone_stages is'),
  ('map', 'huggingface', "pooling is 'map', can be 'token'"),
  ('representation', 'huggingface', 'representation_size is 10, can be 0'),
  ('mixer', 'huggingface', 'holds a ViT, not a mixer'),
  ('mixer', 'google', 'one of vit, not of mixer. Dialects of mixer: mixer'),
  ('post_activation', 'bit', "form is 'post_activation'"),
  ('token', 'gogle', "Did you mean 'google'"),
]


@pytest.mark.parametrize('name,dialect,message', IMPOSSIBLE)
def test_models_that_a_dialect_cannot_express(
  name, dialect, message, tools, tmp_path
):
  path = tmp_path / 'x'
  with pytest.raises(released.ReleasedError, match=message):
    released.write(path, tools.example(name), dialect)
  assert not path.exists()


@pytest.mark.parametrize(
  'field,value', [('activation', 'gelu'), ('norm_epsilon', 1e-5)]
)
@pytest.mark.parametrize('dialect', ['google', 'big_vision'])
def test_functions_that_a_dialect_cannot_express(
  field, value, dialect, tools, tmp_path
):
  made = tools.example('token')
  made.model[field] = value
  with pytest.raises(released.ReleasedError, match=f'{field} is {value!r}'):
    released.write(tmp_path / 'x.npz', made, dialect)


def test_files_are_whole_or_not_there(tools, tmp_path, monkeypatch):
  made, path = tools.example('token'), tmp_path / 'x.npz'
  released.write(path, made, 'google')
  before = path.read_bytes()
  with pytest.raises(FileExistsError, match='is there already'):
    released.write(path, made, 'google')

  def broken(file, **tensors):
    file.write(b'half')
    raise OSError('no space left')

  monkeypatch.setattr(np, 'savez', broken)
  with pytest.raises(OSError, match='no space'):
    released.write(path, made, 'big_vision', overwrite=True)
  assert path.read_bytes() == before
  assert [file.name for file in tmp_path.iterdir()] == ['x.npz']
