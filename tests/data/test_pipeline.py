"""The batches of a step are the same however they are read; none is lost."""

import contextlib
import hashlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import array_sources, batching, pipeline, preprocess, sources

RANDOM = preprocess.parse(
  'random_crop(5, padding=2)|flip_lr|value_range(-1, 1)'
)
FIXED = preprocess.parse('value_range(0, 255)')
COUNT = 37


def numbered():
  """37 images of random pixels, but their number in the corner and label."""
  pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 7, 1))
  pixels[:, 0, 0, 0] = np.arange(COUNT)
  names = [f'class {i}' for i in range(COUNT)]
  return array_sources.ArraySource(
    pixels.astype(np.uint8), np.arange(COUNT), names, 'train'
  )


@pytest.fixture
def photos(tmp_path):
  """20 small image files; of 2 and 3, broken in different ways, see below."""
  generator = np.random.default_rng(0)
  for number in range(20):
    path = tmp_path / 'photos' / 'thing' / f'{number}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = generator.integers(0, 256, (12, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
  source = sources.open_source(f'folder:{tmp_path / "photos"}', 'all')
  truncated, unreadable = (pathlib.Path(source.name(i)) for i in (3, 4))
  truncated.write_bytes(truncated.read_bytes()[:-100])
  unreadable.unlink()
  return source


def take(count, source=None, apply=RANDOM, **options):
  """Returns the first training batches."""
  source = source or numbered()
  with contextlib.closing(
    pipeline.train_batches(source, apply, seed=11, **options)
  ) as batches:
    return [next(batches) for _ in range(count)]


def fingerprint(batch):
  digest = hashlib.sha256()
  for key in sorted(batch):
    digest.update(key.encode() + batch[key].tobytes())
  return digest.hexdigest()


@pytest.fixture(scope='module')
def reference():
  """Eight batches of 8, read in one thread: 64 examples of 37 records."""
  return take(8, batch_size=8, threads=1)


@pytest.mark.parametrize(
  'start_step, options',
  [
    (0, {'threads': 4}),
    (0, {'workers': 2}),
    (3, {'threads': 1}),
    (3, {'workers': 2, 'threads': 2}),
  ],
)
def test_batches_do_not_depend_on_how_they_are_read(
  reference, start_step, options
):
  """Also across an epoch's end, and where a run is resumed."""
  read = take(4, batch_size=8, start_step=start_step, **options)
  for batch, expected in zip(read, reference[start_step:]):
    assert fingerprint(batch) == fingerprint(expected)


@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_read_contiguous_parts_of_the_same_batch(
  reference, process_count
):
  parts = [
    take(
      5,
      batch_size=8,
      start_step=2,
      process_index=index,
      process_count=process_count,
      threads=2,
    )
    for index in range(process_count)
  ]
  for step, expected in enumerate(reference[2:7]):
    for key in ('image', 'label'):
      joined = np.concatenate([part[step][key] for part in parts])
      np.testing.assert_array_equal(joined, expected[key])


def test_each_epoch_holds_every_record_once_in_a_new_order(reference):
  labels = np.concatenate([batch['label'] for batch in reference])
  assert labels.dtype == np.int32 and reference[0]['image'].dtype == np.float32
  first, second = labels[:COUNT], labels[COUNT:]
  assert sorted(first) == list(range(COUNT))
  assert len(set(second)) == len(second) and (second != first[:27]).any()
  other = take(1, batch_size=37, threads=1)[0]
  np.testing.assert_array_equal(other['label'], first)


def test_seeds_and_epochs_have_their_own_order_and_augmentation():
  crop = preprocess.parse('random_crop(2)')
  one = array_sources.ArraySource(numbered().images[:1], np.zeros(1), 'a', 'x')
  batches = take(2, one, crop, batch_size=15, threads=1)
  corners = {image.tobytes() for batch in batches for image in batch['image']}
  assert len(corners) > 10
  with contextlib.closing(
    pipeline.train_batches(numbered(), RANDOM, batch_size=8, seed=12)
  ) as batches:
    other = next(batches)
  assert fingerprint(other) != fingerprint(take(1, batch_size=8)[0])


@pytest.mark.parametrize(
  'process_count, options',
  [(1, {}), (1, {'workers': 2}), (2, {'threads': 3}), (4, {'threads': 1})],
)
def test_evaluation_shows_each_example_exactly_once(process_count, options):
  """37 records are 3 steps of 16; every process takes part in each step."""
  seen = np.zeros(COUNT)
  for index in range(process_count):
    with contextlib.closing(
      pipeline.eval_batches(
        numbered(),
        FIXED,
        batch_size=16,
        process_index=index,
        process_count=process_count,
        **options,
      )
    ) as batches:
      read = list(batches)
    assert len(read) == 3
    for batch in read:
      assert len(batch['label']) == len(batch['mask']) == 16 // process_count
      real = batch['mask'] == 1
      np.testing.assert_array_equal(
        batch['image'][real, 0, 0, 0], batch['label'][real]
      )
      assert not batch['image'][~real].any()
      np.add.at(seen, batch['label'][real], 1)
  np.testing.assert_array_equal(seen, 1)


def test_broken_records_are_replaced_by_the_next_readable(photos):
  apply = preprocess.parse('resize(4)')
  broken = {photos.name(3), photos.name(4)}
  streams = []
  for options in ({'threads': 1}, {'threads': 3}, {'workers': 2}):
    with contextlib.closing(
      pipeline.train_batches(
        photos, apply, batch_size=20, seed=1, max_broken=0.1, **options
      )
    ) as batches:
      streams.append([next(batches)['image'] for _ in range(2)])
      # Counted by record, not by epoch.
      assert set(batches.broken) == broken
      assert 'cut off' in batches.broken[photos.name(3)]
      assert 'FileNotFoundError' in batches.broken[photos.name(4)]
  for stream in streams[1:]:
    np.testing.assert_array_equal(stream, streams[0])
  # Record 5 stands in for 3 and 4.
  fifth = apply(photos[5])['image']
  for epoch in streams[0]:
    assert (epoch == fifth).all(axis=(1, 2, 3)).sum() == 3


def test_broken_records_are_masked_in_evaluation(photos):
  with contextlib.closing(
    pipeline.eval_batches(
      photos, preprocess.parse('resize(4)'), batch_size=8, max_broken=0.1
    )
  ) as batches:
    read = list(batches)
    assert set(batches.broken) == {photos.name(3), photos.name(4)}
  mask = np.concatenate([batch['mask'] for batch in read])
  assert np.flatnonzero(mask == 0).tolist() == [3, 4, 20, 21, 22, 23]
  assert not read[0]['image'][3:5].any()


def test_too_many_broken_records_stop_the_run_with_their_names(photos):
  apply = preprocess.parse('resize(4)')
  for max_broken in (0.0, 0.09):
    for batches in (
      pipeline.train_batches(
        photos, apply, batch_size=20, seed=1, max_broken=max_broken
      ),
      pipeline.eval_batches(
        photos, apply, batch_size=20, max_broken=max_broken
      ),
    ):
      with pytest.raises(pipeline.BrokenDataError) as caught:
        next(batches)
      message = str(caught.value)
      assert photos.name(3) in message or photos.name(4) in message
      assert 'of 20 records' in message and 'data.max_broken' in message
  for number in range(20):
    pathlib.Path(photos.name(number)).write_bytes(b'')
  with pytest.raises(pipeline.BrokenDataError, match='cannot be read'):
    pipeline.eval_batches(photos, apply, batch_size=20, max_broken=0.5)


def test_errors_name_twenty_broken_records_and_count_the_rest():
  error = pipeline._broken_data_error({f'{i:03}': 'x' for i in range(25)}, 100)
  assert '019' in str(error) and '020' not in str(error)
  assert '25 of 100' in str(error) and 'and 5 more' in str(error)


def test_mistakes_do_not_pass_for_broken_data(tmp_path):
  for number, size in enumerate([(8, 8), (8, 9), (8, 8), (8, 8)]):
    path = tmp_path / 'c' / f'{number}.png'
    path.parent.mkdir(exist_ok=True)
    Image.new('RGB', size).save(path)
  source = sources.open_source(f'folder:{tmp_path}', 'all')
  resized = preprocess.parse('resize((4, 5))')
  assert pipeline.example_shape(source, resized) == (4, 5, 3)
  same = preprocess.parse('value_range(0, 1)')
  for batches in (
    pipeline.eval_batches(source, same, batch_size=4, max_broken=0.9),
    pipeline.train_batches(source, same, batch_size=4, seed=0, max_broken=0.9),
  ):
    with pytest.raises(ValueError, match='different shapes.*1.png.*resize'):
      next(batches)
  with pytest.raises(ValueError, match='smaller than the crop') as caught:
    pipeline.eval_batches(
      source, preprocess.parse('central_crop(10)'), batch_size=4, max_broken=0.9
    )
  assert '.png' in caught.value.__notes__[0]


@pytest.mark.parametrize(
  'options, message',
  [
    ({'batch_size': 9, 'process_count': 2}, 'make it a multiple'),
    ({'batch_size': 8, 'process_count': 2, 'process_index': 2}, 'not below'),
    ({'batch_size': 8, 'max_broken': 5}, 'share of the records'),
    ({'batch_size': 8, 'threads': 0}, 'threads 1 or more'),
    ({'batch_size': 8, 'seed': -1}, r'0 to 2\*\*32'),
    ({'batch_size': 8, 'start_step': -1}, 'start_step'),
  ],
)
def test_wrong_arguments_are_explained(options, message):
  with pytest.raises(ValueError, match=message):
    pipeline.train_batches(numbered(), RANDOM, **({'seed': 0} | options))


def test_random_evaluation_is_refused():
  with pytest.raises(ValueError, match='must not be random'):
    pipeline.eval_batches(numbered(), RANDOM, batch_size=8)


@pytest.mark.parametrize('taken', [0, 1])
def test_closing_leaves_no_process_and_no_thread(taken):
  before = set(threading.enumerate())
  batches = pipeline.train_batches(
    numbered(), RANDOM, batch_size=8, seed=0, workers=2, threads=2
  )
  for _ in range(taken):
    next(batches)
  batches.close()
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)
  assert not multiprocessing.active_children()
  batches = pipeline.train_batches(
    numbered(), RANDOM, batch_size=8, seed=0, threads=3
  )
  for _ in range(taken):
    next(batches)
  batches.close()
  for thread in set(threading.enumerate()) - before:
    if thread.name.startswith(('examples', 'grain')):
      thread.join(timeout=5)
      assert not thread.is_alive(), thread.name


def test_a_batch_kept_until_exit_does_no_harm(tmp_path):
  """Workers send batches in shared memory, which must not be left behind."""
  script = tmp_path / 'script.py'
  script.write_text(
    'from vit_jax.data import pipeline, preprocess, sources\n'
    'if __name__ == "__main__":\n'
    '  batches = pipeline.train_batches(\n'
    '    sources.open_source("digits", "train"),\n'
    '    preprocess.parse("flip_lr"), batch_size=64, seed=0, workers=1)\n'
    '  kept = next(batches)\n'
    '  batches.close()\n'
  )
  root = pathlib.Path(__file__).parents[2]
  result = subprocess.run(
    [sys.executable, script],
    env=os.environ | {'PYTHONPATH': str(root)},
    stderr=subprocess.PIPE,
    text=True,
    check=True,
  )
  assert not result.stderr


def test_random_numbers_depend_on_seed_and_example_only():
  one, other = batching.Randomness(5), batching.Randomness(5)
  other.of_example(9).random(7)
  expected = one.of_example(3).random(4)
  np.testing.assert_array_equal(other.of_example(3).random(4), expected)
  for different in (one.of_example(4), batching.Randomness(6).of_example(3)):
    assert (different.random(4) != expected).all()


def test_readers_stay_light():
  """Worker processes load neither TensorFlow nor the rest of the package.

  JAX is not imported by `vit_jax.data` either, but by Grain, where Orbax is
  installed.
  """
  code = (
    'import pkgutil, importlib, sys, vit_jax.data as data\n'
    'for module in pkgutil.iter_modules(data.__path__, "vit_jax.data."):\n'
    '  importlib.import_module(module.name)\n'
    'heavy = {"tensorflow", "tensorflow_datasets", "sklearn", "flax"}\n'
    'found = heavy & set(sys.modules)\n'
    'found |= {name for name in sys.modules if name.startswith("vit_jax.")\n'
    '          and not name.startswith("vit_jax.data")}\n'
    'assert not found, found\n'
  )
  root = pathlib.Path(__file__).parents[2]
  subprocess.run([sys.executable, '-c', code], cwd=root, check=True)
