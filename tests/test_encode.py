"""`python -m vit_jax.encode`, and runs that read what it writes."""

import dataclasses
import io
import itertools
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import encode, evaluate, generate
from vit_jax.config import ConfigError
from vit_jax.data import batching, caption_filter, captions, code_files
from vit_jax.models import discrete_vae
from vit_jax.tasks.discrete_vae import DiscreteVae
from vit_jax.training import frozen, inputs, loop, records, schema
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib

# Of shapes of 16 pixels, training takes what surrounds them at random.
FILE = """
from ml_collections import ConfigDict

def get_config():
  source = 'shapes:pixels=16'
  floats = 'value_range(0, 1)'
  return ConfigDict(dict(
    task=dict(name='text_to_image', image_codes='somewhere'),
    model=dict(
      name='dalle', text_vocabulary=587, text_length=12, image_vocabulary=19,
      grid=(4, 4), width=8, depth=1, mlp_dim=8, num_heads=1,
    ),
    data=dict(
      train=dict(source=source, split='train[:50]', preprocess=floats),
      test=dict(source=source, split='test[:9]', preprocess=floats),
    ),
    batch_size=8,
    total='10steps',
    optimizer=dict(name='sgd', learning_rate=0.1),
    schedule=dict(name='constant'),
    eval=dict(every='100%'),
    checkpoint=dict(every='100%'),
  ))
"""
RANDOM = '--config.data.train.preprocess=random_crop(16, 4)|value_range(0, 1)'


@pytest.fixture(scope='module')
def vae():
  """A discrete VAE in all but training."""
  task = DiscreteVae(
    discrete_vae.DiscreteVae(
      width=8, blocks_per_group=1, groups=1, vocabulary_size=19, code_width=4,
      stem_size=3, patch_size=4, codebook_std=1.0, pixel_mean=0.9,
      pixel_std=0.1,
    ),
    (16, 16, 3),
  )  # fmt: skip
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32),
    jax.eval_shape(task.init, jax.random.key(0)),
  )
  return frozen.Frozen(task, variables, {'identity': 'abc'})


@pytest.fixture
def run(tmp_path, vae, monkeypatch):
  """Returns a function from arguments to what the command prints."""

  def load(config):
    return vae if config.task.get('image_codes') else None

  monkeypatch.setattr(frozen, 'load', load)
  (tmp_path / 'config.py').write_text(FILE)

  def call(*arguments, out='codes'):
    console = Console(file=io.StringIO(), width=300)
    given = (f'--config={tmp_path}/config.py', f'--out={tmp_path / out}')
    encode.main((*given, *arguments), console)
    return console.file.getvalue()

  return call


def resolved(path, *overrides):
  settings = config_lib.load(str(path / 'config.py'))
  return config_lib.resolve(settings, overrides, schema.SCHEMA)


def of_codes(path, *overrides):
  """Returns the configuration of a run that reads what was written."""
  return resolved(
    path,
    *(
      f'--config.data.{name}.{key}'
      for name in ('train', 'test')
      for key in (f'source=codes:{path / "codes"}', f'split={name}')
    ),
    *overrides,
  )


def batches(settings, what):
  """Returns an epoch of training batches, and one of testing."""

  def say(name, message):
    raise AssertionError(f'{name}: {message}')

  opened = inputs.open_inputs(settings)
  opened = dataclasses.replace(opened, names=(what, 'text', 'truncated'))
  mesh = mesh_lib.make(settings.mesh)
  source, preprocess = opened.source['test'], opened.preprocess['test']
  train = inputs.train_batches(settings, opened, mesh, 0, say)
  test = inputs.test_batches(settings, source, preprocess, mesh, say)
  return [*itertools.islice(train, 7), *test]


def test_batches_are_those_that_the_run_would_encode(run, tmp_path, vae):
  run('--shard=20', '--batch=7')
  found = batches(of_codes(tmp_path), 'codes')
  wanted = batches(resolved(tmp_path), 'image')
  encode_images = jax.jit(vae.task.encode)
  for codes, images in zip(found, wanted, strict=True):
    real = np.asarray(images.get('mask', np.ones(8))) > 0
    expected = encode_images(vae.variables, images.pop('image'))
    expected = np.reshape(expected, (8, 16))[real]
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(codes['codes'][real], expected)
    for name, value in images.items():
      np.testing.assert_array_equal(codes[name], value)


def test_parts_and_what_was_stopped_go_on(run, tmp_path):
  train = tmp_path / 'codes' / 'train'
  said = run('--only=train', '--shard=20', '--part=0/2')
  assert '2 of 3 shards' in said and 'shard 1:' not in said
  with pytest.raises(ConfigError, match='not complete'):
    inputs.open_inputs(of_codes(tmp_path))
  said = run('--only=train', '--shard=20', '--part=1/2')
  assert 'shard 1: 20 records' in said and '3 of 3' in said
  before = (train / '00002-codes.npy').read_bytes()
  (train / '00002-codes.npy').write_bytes(before[:-1])
  said = run('--only=train', '--shard=20')
  assert 'shard 2: 10 records' in said
  assert 'shard 0' not in said and 'shard 1' not in said
  assert (train / '00002-codes.npy').read_bytes() == before
  assert 'shard ' not in run('--only=train', '--shard=20')
  with pytest.raises(ConfigError, match='shard_records was 20 and is 25'):
    run('--only=train', '--shard=25')


def test_what_the_filters_leave_out_is_counted(run, tmp_path):
  rules = (
    '--config.data.text.without=red',
    '--config.data.text.characters=(30, 99)',
    '--config.data.text.aspect=2.0',
  )
  said = run('--only=train', *rules)
  source = captions.open_source(f'codes:{tmp_path / "codes"}', 'train')
  (line,) = [line for line in said.splitlines() if 'left out' in line]
  assert 'caption excluded' in line and 'caption too short' in line
  counts = sum(map(int, re.findall(r' (\d+) caption', line)))
  assert counts == 50 - len(source)
  for index in range(len(source)):
    (caption,) = source.captions(index)
    assert 'red' not in caption and len(caption) >= 30
  # The rules are the same in training, but for those of images.
  again = records.open_split(of_codes(tmp_path, *rules), 'train')
  assert len(again) == len(source)
  other = of_codes(tmp_path, *rules, '--config.data.text.without=blue')
  assert 0 < len(records.open_split(other, 'train')) < len(source)
  with pytest.raises(ConfigError, match="captions was .*'red'.*'blue'"):
    run('--only=train', *rules, '--config.data.text.without=blue')


def test_captions_that_have_passed_are_not_looked_at_again(
  run, tmp_path, monkeypatch
):
  rules = ('--config.data.text.without=red', '--config.data.text.latin=0.5')
  run(*rules, '--shard=20')
  monkeypatch.setattr(
    caption_filter.Rules, 'against_caption', lambda *unused: 'looked at'
  )
  for split, count in (('train', 20), ('train[:9]+train[12:15]', 12)):
    split = f'--config.data.train.split={split}'
    opened = records.open_split(of_codes(tmp_path, *rules, split), 'train')
    assert len(opened) >= count
  with pytest.raises(ConfigError, match='looked at'):
    records.open_split(of_codes(tmp_path, rules[0]), 'train')


def test_crops_differ_and_do_not_depend_on_batches(run, tmp_path):
  for out, batch in (('codes', 4), ('again', 9)):
    run('--crops=3', f'--batch={batch}', RANDOM, out=out)
  first, again = (
    captions.open_source(f'codes:{tmp_path / out}', 'train')
    for out in ('codes', 'again')
  )
  assert first[0]['codes'].shape == (3, 16)
  assert first[0]['codes'].dtype == np.uint8
  differ = 0
  for index in range(50):
    crops = first[index]['codes']
    np.testing.assert_array_equal(crops, again[index]['codes'])
    differ += len(np.unique(crops, axis=0)) > 1
  assert differ > 40
  reads = run_lib.prepare(of_codes(tmp_path, RANDOM))
  assert reads.inputs.known.image_shape == (16, 16, 3)
  assert reads.batch['codes'].shape == (8, 16)


@pytest.mark.parametrize(
  'override, identity, message',
  [
    (RANDOM, 'abc', r"prepared by 'value_range\(0, 1\)'"),
    ('--config.data.text.aspect=2.0', 'abc', 'aspect is 2.0.* chosen by None'),
    ('--config.model.grid=(2, 8)', 'abc', r'4 x 4 codes.*grid=\(4, 4\)'),
    # It would have a grid of its own as well.
    ('--config.model.grid=(2, 8)', 'def', 'another discrete VAE than that at'),
    ('--config.seed=1', 'def', 'another discrete VAE than that at somewhere'),
  ],
)
def test_codes_that_do_not_fit_are_refused(
  run, tmp_path, vae, monkeypatch, override, identity, message
):
  run()
  other = frozen.Frozen(vae.task, vae.variables, {'identity': identity})
  monkeypatch.setattr(frozen, 'load', lambda unused_config: other)
  with pytest.raises(ConfigError, match=message):
    run_lib.prepare(of_codes(tmp_path, override))


def test_a_file_is_no_folder_to_write_to(run, tmp_path, monkeypatch):
  monkeypatch.setattr(frozen, 'load', lambda unused_config: pytest.fail())
  (tmp_path / 'p.txt').touch()
  (tmp_path / 'codes').mkdir()
  (tmp_path / 'codes' / 'test').touch()
  for out, found in (
    ('p.txt', 'p.txt'), ('p.txt/more', 'p.txt'), ('codes', 'codes/test')
  ):  # fmt: skip
    with pytest.raises(ConfigError, match=f'{out} .*/{found} is a file. Name'):
      run(out=out)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--crops=2'], 'all the same.*is not random'),
    (['--config.data.test.split=tset'], 'tset'),
    (['--config.data.train.split=train'], 'no end: name a part'),
    (
      ['--config.data.train.preprocess=resize(8)|value_range(0, 1)'],
      r'makes \(8, 8, 3\)',
    ),
    (
      ['--config.data.train.preprocess=value_range(-1, 1)'],
      r"from -1 to 1, but the model takes 0 to 1\. Use 'value_range\(0, 1\)'",
    ),
    (['--config.task.image_codes='], 'names no discrete VAE'),
    (['--config.data.train.source=codes:codes'], 'no codes at codes'),
    (
      ['--config.data.train.split=train[:500]', '--shard=1'],
      '500 shards, and each takes three open files.*use 2 or more',
    ),
  ],
)
def test_what_cannot_be_encoded_is_refused(run, tmp_path, arguments, message):
  with pytest.raises(ConfigError, match=message):
    run(*arguments)
  assert not (tmp_path / 'codes').exists()


def broken_images(folder, count=4, broken=(2,)):
  """Writes captions of images, some of which cannot be read."""
  folder.mkdir()
  for number in range(count):
    path = folder / f'{number}.png'
    if number in broken:
      path.write_bytes(b'no image')
    else:
      Image.new('RGB', (16, 16), (60 * number, 0, 0)).save(path)
  rows = [{'file': f'{n}.png', 'text': f'number {n}'} for n in range(count)]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'captions.jsonl').write_text(text)
  return (
    '--only=train',
    f'--config.data.train.source=captions:{folder}',
    '--config.data.train.split=all',
  )


def test_no_more_records_may_be_broken_than_the_run_allows(run, tmp_path):
  options = broken_images(tmp_path / 'images')
  with pytest.raises(ConfigError, match='1 of the 4 records of shard 0'):
    run(*options)
  said = run(*options, '--config.data.max_broken=0.25')
  assert '3 records, 1 cannot be read' in said


def test_a_shard_with_too_many_broken_records_is_stopped_early(
  run, tmp_path, monkeypatch
):
  options = broken_images(tmp_path / 'images', 80, range(1, 80))
  read = []

  def count(*given):
    read.append(given)
    return read_example(*given)

  read_example = batching.read_example
  monkeypatch.setattr(batching, 'read_example', count)
  with pytest.raises(ConfigError, match='At least 15 of the 80 records'):
    run(*options, '--batch=8', '--config.data.max_broken=0.1')
  # One to see its shape, two batches, and one that was on its way.
  assert len(read) == 1 + 3 * 8


def test_codes_of_a_shard_are_held_as_they_are_stored(
  run, tmp_path, monkeypatch
):
  held = []

  def write(folder, number, about, codes, *others):
    held.append(codes)
    write_shard(folder, number, about, codes, *others)

  write_shard = code_files.write_shard
  monkeypatch.setattr(code_files, 'write_shard', write)
  run('--only=test', '--batch=8', out='codes')
  (codes,) = held
  assert codes.dtype == np.uint8
  written = np.load(tmp_path / 'codes' / 'test' / '00000-codes.npy')
  np.testing.assert_array_equal(written, codes)


def test_parts_of_other_codes_are_not_put_together(run, tmp_path):
  run('--only=test', '--shard=5', '--part=0/2')
  # As if it had been written at the same time as the first.
  run('--only=test', '--shard=5', '--part=1/2', '--config.seed=1', out='other')
  for path in (tmp_path / 'other' / 'test').glob('*1*'):
    path.rename(tmp_path / 'codes' / 'test' / path.name)
  with pytest.raises(ConfigError, match='seed'):
    run('--only=test', '--shard=5', '--part=0/2')


def test_images_need_a_discrete_vae(run, tmp_path):
  with pytest.raises(ConfigError, match='image_codes is empty'):
    run_lib.prepare(resolved(tmp_path, '--config.task.image_codes='))


def test_without_a_discrete_vae_codes_are_learned_but_not_drawn(run, tmp_path):
  run()
  workdir = tmp_path / 'run'
  settings = of_codes(
    tmp_path, '--config.task.image_codes=', '--config.total=1steps'
  )
  console = Console(file=io.StringIO(), width=300)
  loop.train(run_lib.prepare(settings), workdir, console)
  options = [f'--workdir={workdir}']
  evaluate.main(options, console)
  assert 'step 1 on codes:' in console.file.getvalue()
  images = [
    '--config.data.test.source=shapes:pixels=16',
    '--config.data.test.split=test[:9]',
  ]
  with pytest.raises(ConfigError, match='images, but .*image_codes is empty'):
    evaluate.main([*options, *images], console)
  for main, others in (
    (evaluate.main, ['--tasks=generation']),
    (evaluate.main, ['--tasks=generation', *images]),
    (generate.main, ['--prompt=a red circle', f'--out={tmp_path / "out"}']),
  ):
    with pytest.raises(ConfigError, match='trained without a discrete VAE'):
      main([*options, *others], console)
  assert not (tmp_path / 'out').exists()


def test_only_text_to_image_reads_codes(run, tmp_path):
  run()
  settings = config_lib.load(str(tmp_path / 'config.py'))
  settings.task = settings.model = dict(name='discrete_vae')
  settings.data.train.source = f'codes:{tmp_path / "codes"}'
  settings.data.train.split = 'train'
  with pytest.raises(ConfigError, match='only text_to_image reads; discrete'):
    run_lib.prepare(config_lib.resolve(settings, (), schema.SCHEMA))


def test_identity_is_of_numbers_and_variables():
  model = dict(name='discrete_vae', width=8)
  variables = {'params': {'a': np.arange(3.0), 'b': np.zeros(())}}
  identity = frozen._identity
  first = identity(model, variables)
  assert identity(dict(model, groups=4, remat='none'), variables) == first
  others = [
    identity(dict(model, width=16), variables),
    identity(model, {'params': {**variables['params'], 'b': np.ones(())}}),
    identity(model, {'params': {'a': np.arange(3.0), 'c': np.zeros(())}}),
  ]
  assert len({first, *others}) == 4
