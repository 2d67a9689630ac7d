"""Batches of images with tokens: from a spec, in any process, without twins."""

import contextlib
import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import (
  captions,
  pairs,
  pipeline,
  preprocess,
  sources,
  unique_order,
  views,
)
from vit_jax.data.tokenizer import Tokenizer, train_merges


@pytest.fixture(scope='module')
def source():
  return captions.open_source('shapes:pixels=16', 'train[:40]')


@pytest.fixture(scope='module')
def process(source):
  merges = train_merges([source.captions(i)[0] for i in range(40)], 600)
  return pairs.PairPreprocess(
    preprocess.parse('random_crop(14)|value_range(-1, 1)'), Tokenizer(merges, 8)
  )


def test_parts_of_sources_are_joined(source):
  joined = captions.open_source(
    'shapes:pixels=16 + shapes:pixels=32,seed=5', 'test[:2]+train[3:5]'
  )
  other = captions.open_source('shapes:pixels=32,seed=5', 'train')
  assert len(joined) == 8
  assert [joined[i]['image'].shape[0] for i in range(8)] == [16] * 4 + [32] * 4
  assert joined.captions(2) == source.captions(3)
  assert joined.captions(7) == joined[7]['texts'] == other.captions(4)
  assert joined.fields(7) == other.fields(4)
  assert joined.name(7) == 'train/4'
  with pytest.raises(IndexError):
    joined[8]


@pytest.mark.parametrize(
  'spec, split, message',
  [
    ('shape:pixels=16', 'train', "unknown source .*did you mean 'shapes'"),
    ('captions:', 'train', "bad source 'captions:'"),
    ('shards', 'train', "bad source 'shards'"),
    ('shapes', 'val', "shapes has no split 'val'"),
  ],
)
def test_unknown_sources_are_refused(spec, split, message):
  with pytest.raises(ValueError, match=message):
    captions.open_source(spec, split)


def test_batches_hold_images_and_tokens(source, process):
  def take(**options):
    with contextlib.closing(
      pipeline.train_batches(
        source, process, batch_size=8, seed=3, start_step=2, **options
      )
    ) as batches:
      return next(batches)

  batch, again = take(threads=1), take(workers=1)
  for name, value in batch.items():
    np.testing.assert_array_equal(value, again[name])
  assert batch['image'].shape == (8, 14, 14, 3)
  assert batch['text'].shape == (8, 8)
  # Six tokens are enough for short captions only.
  assert 0 < batch['truncated'].sum() < 8


def test_more_workers_than_shards_read_all_of_it(tmp_path, process):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
  with tarfile.open(tmp_path / '0.tar', 'w') as archive:
    for number, image in enumerate(pixels):
      content = io.BytesIO()
      Image.fromarray(image).save(content, 'png')
      for name, data in (
        (f'{number}.png', content.getvalue()),
        (f'{number}.txt', f'picture {number}'.encode()),
      ):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
  one = captions.open_source(f'shards:{tmp_path}', 'all')

  def read(**options):
    with contextlib.closing(
      pipeline.train_batches(one, process, batch_size=2, seed=4, **options)
    ) as batches:
      return [next(batches) for _ in range(5)]

  alone, shared = read(threads=1), read(workers=2)
  for batch, again in zip(alone, shared):
    for name, value in batch.items():
      np.testing.assert_array_equal(value, again[name])
  # Two epochs, each with every record.
  found = np.concatenate([batch['identity'] for batch in shared])
  everything = sorted(int(pairs.identity(f'picture {i}')) for i in range(5))
  assert sorted(found[:5]) == sorted(found[5:]) == everything


def test_a_caption_is_drawn_and_the_first_says_what_is_the_same(process):
  record = {'image': np.zeros((16, 16, 3), np.uint8), 'texts': ('red', 'blue')}
  rngs = map(np.random.default_rng, range(40))
  examples = [process(record, rng) for rng in rngs]
  decode = process.tokenizer.decode
  drawn = [decode(example['text']) for example in examples]
  assert 10 < drawn.count('red') == 40 - drawn.count('blue') < 30
  assert len({int(example['identity']) for example in examples}) == 1
  same, other = pairs.identity(' RED'), pairs.identity('blue')
  assert examples[0]['identity'] == same != other
  assert same.dtype == np.int32
  fixed = pairs.PairPreprocess(
    preprocess.parse('value_range(-1, 1)'), process.tokenizer
  )
  assert fixed.deterministic and not process.deterministic
  assert decode(fixed(record)['text']) == 'red'


def test_no_batch_holds_an_identity_twice():
  identities = [5, 7, 5, 9, 9, 9, -2, 4, 5, 11]
  order = unique_order.UniqueOrder(identities, batch_size=4, seed=1)
  copy = pickle.loads(pickle.dumps(order))
  records = [order[position] for position in range(120)]
  assert records == [copy[position] for position in range(120)]
  found = np.array(identities)[records]
  for batch in found.reshape(30, 4):
    assert len(set(batch)) == 4
  # Each of the 6 identities comes as often, and so does each record of one.
  for identity in set(identities):
    assert 11 < (found == identity).sum() < 29
  assert set(records) == set(range(10))
  assert 2 < records.count(3) < 14
  other = unique_order.UniqueOrder(identities, batch_size=4, seed=2)
  assert records != [other[position] for position in range(120)]
  with pytest.raises(ValueError, match='10 records have 6'):
    unique_order.UniqueOrder(identities, batch_size=7, seed=0)


def test_identities_are_those_of_the_first_captions():
  twice = captions.open_source('shapes + shapes', 'train[:5]')
  found = unique_order.identities(twice)
  assert found[:5] == found[5:]
  assert found[3] == pairs.identity(twice.captions(3)[0])
  assert len(set(found)) == 5


def test_specs_end_in_conditions():
  whole = captions.open_source('shapes:pixels=16', 'test')
  spec = 'shapes:pixels=16 where color_1=red, size_1!=small'
  some = captions.open_source(spec, 'test')
  fields = [some.fields(i) for i in range(len(some))]
  assert 0 < len(some) < len(whole)
  assert {(x['color_1'], x['size_1']) for x in fields} == {('red', 'large')}
  with pytest.raises(ValueError, match="no field 'colour'.*color_1"):
    captions.open_source('shapes:pixels=16 where colour=red', 'test')


def test_fields_become_labels():
  spec = 'field:shape_1:shapes:pixels=16 where color_1=red'
  source = sources.open_source(spec, 'test')
  plain = captions.open_source('shapes:pixels=16 where color_1=red', 'test')
  assert len(source) == len(source.labels) == len(plain)
  for index in (0, 5):
    record = source[index]
    name = source.class_names[record['label']]
    assert name == plain.fields(index)['shape_1']
    np.testing.assert_array_equal(record['image'], plain[index]['image'])
  # Labels do not depend on which records are chosen.
  everything = sources.open_source('field:shape_1:shapes:pixels=16', 'test')
  assert everything.class_names == ('circle', 'cross', 'square', 'triangle')
  with pytest.raises(ValueError, match='too many to look at'):
    sources.open_source('field:shape_1:shapes:pixels=16', 'train')
  pickle.loads(pickle.dumps(source))


def test_templates_take_captions(source):
  merges = train_merges([source.captions(i)[0] for i in range(40)], 600)
  words = Tokenizer(merges, 20)
  image = preprocess.parse('value_range(-1, 1)')
  process = pairs.PairPreprocess(image, words, ('it is {}', 'see {} there'))
  caption = source.captions(0)[0]
  first = process(source[0])
  assert words.decode(first['text']) == f'it is {caption}'
  assert first['identity'] == pairs.identity(caption)
  rng = np.random.default_rng(0)
  drawn = {words.decode(process(source[0], rng)['text']) for _ in range(9)}
  assert drawn == {f'it is {caption}', f'see {caption} there'}
  with pytest.raises(ValueError, match='has no {}'):
    pairs.PairPreprocess(image, words, ('nothing',))


def test_merges_are_left_out_in_training_alone(source):
  merges = train_merges([source.captions(i)[0] for i in range(40)], 600)
  words, image = Tokenizer(merges, 30), preprocess.parse('value_range(-1, 1)')
  plain = pairs.PairPreprocess(image, words)
  process = pairs.PairPreprocess(image, words, bpe_dropout=0.3)
  process = pickle.loads(pickle.dumps(process))

  def text(process, seed=None):
    rng = None if seed is None else np.random.default_rng(seed)
    return list(process(source[0], rng)['text'])

  assert text(process) == text(plain) == text(plain, 1)
  assert text(process, 1) == text(process, 1)
  assert len({tuple(text(process, seed)) for seed in range(9)}) > 3
  with pytest.raises(ValueError, match='bpe_dropout is 10'):
    pairs.PairPreprocess(image, words, bpe_dropout=10)


def test_two_views_differ_and_keep_the_label():
  first = preprocess.parse('random_crop(6)|value_range(0, 1)')
  second = preprocess.parse('random_crop(6)|value_range(-1, 0)')
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
  process = pickle.loads(pickle.dumps(views.TwoViews(first, second)))
  found = process({'image': image, 'label': 3}, np.random.default_rng(1))
  assert found['label'] == 3 and not process.deterministic
  assert found['image'].min() >= 0 >= found['view'].max()
  assert not np.allclose(found['image'], found['view'] + 1)
