"""Codes in files: what is written is read, and what is damaged is named."""

import dataclasses
import json
import pickle
import tracemalloc

import numpy as np
import pytest

from vit_jax.data import captions, code_files, code_shards, preprocess

ABOUT = code_files.About(
  vae='abc', vocabulary=300, grid=(2, 3), image_shape=(8, 12, 3),
  source='shapes', split='train[:7]', preprocess='random_crop(8)', crops=2,
  seed=0, aspect=None, records=7, shard_records=3,
)  # fmt: skip
CODES = np.random.default_rng(0).integers(0, 300, (7, 2, 6))


def row(index):
  return dict(
    name=f'train/{index}', captions=[f'née {index}', 'b'], fields={'x': index}
  )


def write(folder, number, about=ABOUT):
  """Writes a shard; record 4 could not be read."""
  kept = [i for i in range(number * 3, min(number * 3 + 3, 7)) if i != 4]
  code_files.write_shard(
    folder, number, about, CODES[kept], [row(i) for i in kept], {'4': 'damaged'}
  )


@pytest.fixture
def folder(tmp_path):
  for number in (2, 0, 1):
    assert code_files.finish(tmp_path / 'train', ABOUT) > 0
    write(tmp_path / 'train', number)
  assert code_files.finish(tmp_path / 'train', ABOUT) == 0
  return tmp_path / 'train'


def test_codes_are_written_without_a_copy(tmp_path):
  codes = np.zeros((2**20, 2, 6), np.uint16)
  tracemalloc.start()
  try:
    code_files.write_shard(tmp_path, 0, ABOUT, codes, [], {})
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert most < codes.nbytes / 2


def test_records_come_back(folder):
  spec = f'codes:{folder.parent}'
  opened = captions.open_source(spec, 'train')
  for source in (opened, pickle.loads(pickle.dumps(opened))):
    assert len(source) == 6
    for place, index in enumerate((0, 1, 2, 3, 5, 6)):
      record = source[place]
      np.testing.assert_array_equal(record['codes'], CODES[index])
      assert record['codes'].dtype == np.uint16
      assert record['texts'] == source.captions(place) == (f'née {index}', 'b')
      assert source.fields(place) == {'x': index}
      assert source.name(place) == f'train/{index}'
  with pytest.raises(IndexError):
    source[6]
  some = captions.open_source(f'{spec} where x=5', 'train')
  np.testing.assert_array_equal(some[0]['codes'], CODES[5])
  assert captions.about_codes(spec, 'train[:2]') == ABOUT.kind()
  assert captions.about_codes('shapes', 'train') is None
  # Maps do not go to worker processes.
  assert len(pickle.dumps(opened)) < 1000


@pytest.mark.parametrize('name', ['00001-codes.npy', '00002-ends.npy'])
@pytest.mark.parametrize('damage', ['a bit', 'a part', 'all'])
def test_damage_is_named_and_mended(folder, name, damage):
  path, number = folder / name, int(name[:5])
  content = path.read_bytes()
  if damage == 'all':
    path.unlink()
  elif damage == 'a part':
    path.write_bytes(content[:-1])
  else:
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  with pytest.raises(ValueError, match=f'1 of 3 shards.*{name}.*encode again'):
    captions.open_source(f'codes:{folder.parent}', 'train')
  whole = [code_files.is_whole(folder, n, ABOUT) for n in range(3)]
  assert whole == [n != number for n in range(3)]
  write(folder, number)
  code_files.finish(folder, ABOUT)
  assert path.read_bytes() == content
  assert len(captions.open_source(f'codes:{folder.parent}', 'train')) == 6


def test_what_is_not_whole_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='no codes at'):
    captions.open_source(f'codes:{tmp_path}', 'train')
  write(tmp_path / 'train', 1)
  with pytest.raises(ValueError, match='train is not complete'):
    captions.open_source(f'codes:{tmp_path}', 'train')
  other = dataclasses.replace(ABOUT, preprocess='resize(8)', seed=3)
  with pytest.raises(ValueError, match='seed was 0 and is 3'):
    code_files.is_whole(tmp_path / 'train', 1, other)


@pytest.mark.parametrize(
  'content', ['', '[]', '{}', '{"about": null}', 'no records', 'no hashes']
)
def test_a_shard_whose_json_is_damaged_is_missing(folder, content):
  path = code_files.path_of(folder, 1)
  whole = json.loads(path.read_text())
  if content == 'no records':
    del whole['records']
  elif content == 'no hashes':
    whole['sha256'] = {}
  path.write_text(json.dumps(whole) if content[:2] == 'no' else content)
  assert not code_files.is_whole(folder, 1, ABOUT)
  assert code_files.finish(folder, ABOUT) == 1
  # Settings of those that can be read are compared none the less.
  with pytest.raises(ValueError, match='seed was 0 and is 3'):
    code_files.finish(folder, dataclasses.replace(ABOUT, seed=3))
  write(folder, 1)
  assert code_files.finish(folder, ABOUT) == 0


def test_only_codes_of_one_kind_are_joined(folder, tmp_path):
  other = tmp_path / 'other'
  for seed, vae in ((1, 'abc'), (1, 'def')):
    about = dataclasses.replace(ABOUT, seed=seed, vae=vae, source='else')
    for number in range(3):
      write(other / vae, number, about)
    code_files.finish(other / vae, about)
  one = f'codes:{tmp_path}'
  assert captions.about_codes(f'codes:{other}', 'abc') == ABOUT.kind()
  with pytest.raises(ValueError, match='differ in their discrete VAE'):
    captions.about_codes(f'codes:{other}', 'abc+def')
  with pytest.raises(ValueError, match='images and codes'):
    captions.about_codes(f'{one} + shapes', 'train')


def test_any_crop_is_taken_and_the_first_without_randomness():
  image = preprocess.parse('random_crop(8)')
  choose = pickle.loads(pickle.dumps(code_shards.ChooseCrop(image, (8, 8, 3))))
  record = {'codes': np.arange(12, dtype=np.uint16).reshape(3, 4)}
  first = choose(record)['codes']
  assert first.dtype == np.int32 and list(first) == [0, 1, 2, 3]
  rngs = map(np.random.default_rng, range(30))
  drawn = [int(choose(record, rng)['codes'][0]) for rng in rngs]
  assert {*drawn} == {0, 4, 8} and max(map(drawn.count, drawn)) < 20
  assert choose.image_shape == (8, 8, 3) and not choose.deterministic
