"""Captions that are left out, cannot be read, or are learned from."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import tarfile
import types

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.data.tokenizer import Tokenizer, train_merges
from vit_jax.training import inputs, records, schema, summary, texts
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib

DALLE = pathlib.Path(__file__).parents[2] / 'configs' / 'dalle.py'


@pytest.fixture(scope='module')
def captioned(tmp_path_factory):
  """Six images, each with a caption of another kind."""
  folder = tmp_path_factory.mktemp('captioned')
  texts = (
    'a red fox', 'a grey wolf', 'IMG_1234 5678', 'красный лис',
    'a fox, stock photo', 'a long train',
  )  # fmt: skip
  with (folder / 'captions.jsonl').open('w', encoding='utf-8') as table:
    for number, text in enumerate(texts):
      size = (64, 16) if 'long' in text else (16, 16)
      Image.new('RGB', size, (9 * number, 90, 9)).save(folder / f'{number}.png')
      row = {'file': f'{number}.png', 'caption': text}
      table.write(json.dumps(row) + '\n')
  return f'captions:{folder}'


def with_captions(source, *overrides):
  """Returns the configuration of a small CLIP that learns from a source."""
  tower = dict(width=16, depth=1, num_heads=2, mlp_dim=32)
  split = dict(
    source=source, split='all', preprocess='resize(16)|value_range(-1, 1)'
  )
  every = dict(every='100%')
  settings = dict(
    task=dict(name='contrastive'),
    model=dict(
      name='clip',
      width=16,
      image=dict(name='vit', patch_size=8, **tower),
      text=dict(vocabulary_size=49_408, length=16, **tower),
    ),
    data=dict(train=split, test=dict(split), text=dict(tokenizer='openai')),
    batch_size=16,
    total='1steps',
    optimizer=dict(name='sgd', learning_rate=0.01),
    schedule=dict(name='constant'),
    eval=every,
    checkpoint=dict(every),
  )
  arguments = [f'--config.{override}' for override in overrides]
  return config_lib.resolve(settings, arguments, schema.SCHEMA)


@pytest.mark.parametrize(
  'rule, dropped',
  [
    ('latin=0.7', {'caption not Latin': 2}),
    ('without=(?i)stock|grey', {'caption excluded': 2}),
    ('aspect=2.0', {'image too long': 1}),
    ('characters=(10,13)', {'caption too short': 1, 'caption too long': 1}),
  ],
)
def test_what_the_rules_refuse_is_not_trained_on(captioned, rule, dropped):
  found = inputs.open_inputs(with_captions(captioned, f'data.text.{rule}'))
  assert dict(found.source['train'].dropped) == dropped
  assert found.train_examples == 6 - sum(dropped.values())
  for source in found.source.values():
    assert len(source) == found.train_examples


def test_merges_are_left_out_of_training_alone(captioned):
  """Whatever random numbers a test is given."""
  words = Tokenizer(train_merges(['a red fox'], 600), 16)

  def tokens(name, dropout):
    settings = with_captions(captioned, f'data.text.bpe_dropout={dropout}')
    process = records.open_transform(settings, name, words)
    record = {'image': np.zeros((16, 16, 3), np.uint8), 'texts': ('a red fox',)}
    return process(record, np.random.default_rng(0))['text'].tolist()

  whole = tokens('train', 0.0)
  assert tokens('test', 1.0) == tokens('test', 0.0) == whole
  # Three words of seven letters.
  letters = tokens('train', 1.0)
  assert np.count_nonzero(letters) - np.count_nonzero(whole) == 7 - 3


class Looked(Exception):
  pass


class Many:
  """As many records as the paper of DALL-E has; tells when one is read."""

  def __len__(self):
    return 250_000_000

  def captions(self, unused_index):
    raise Looked


def test_rules_need_a_source_with_an_end():
  rules = config_lib.load(str(DALLE)).data.text
  with pytest.raises(Looked):
    texts.filtered(Many(), rules)
  endless = texts.open_source(
    types.SimpleNamespace(source='shapes', split='train'), 'config.data.train'
  )
  with pytest.raises(ConfigError, match='2,147,483,648.* no end') as caught:
    texts.filtered(endless, rules)
  assert str(caught.value).count('config.data.text') == 1


def test_a_run_says_what_the_rules_refuse(captioned):
  run = run_lib.prepare(
    with_captions(
      captioned, 'data.text.latin=0.7', 'data.text.aspect=2.0', 'batch_size=8'
    )
  )
  console = Console(file=io.StringIO(), width=200)
  console.print(summary.of_plan(run))
  text = console.file.getvalue()
  assert '3 examples' in text
  refused = '2 caption not Latin, 1 image too long'
  assert re.search(f'left out +{refused}', text)
  assert re.search(f'left out of test +{refused}', text)


def test_what_is_left_out_is_counted_at_every_stage(tmp_path):
  rows = (
    ('plain', ['a fox', '3']), ('plain', ['4']), ('odd', ['a wolf']),
    ('plain', ['a cat']),
  )  # fmt: skip
  files = {f'{number}.png': b'' for number in range(5)}
  for number, (style, several) in enumerate(rows):
    row = {'style': style, 'captions': several}
    files[f'{number}.json'] = json.dumps(row).encode()
  write_tar(tmp_path / '0.tar', files)
  settings = with_captions(
    f'shards:{tmp_path} where style=plain', 'data.text.characters=(2,99)'
  )
  with settings.unlocked():
    settings.data.train.split = 'all[:2]+all[2:]'
  source = records.open_split(settings, 'train')
  assert [source.captions(i) for i in range(len(source))] == [
    ('a fox',), ('a cat',)
  ]  # fmt: skip
  assert texts.left_out(source).split(', ') == [
    '1 caption too short', '1 captions of records that stay',
    '1 not style=plain', '1 no text',
  ]  # fmt: skip


def write_tar(path, files):
  with tarfile.open(path, 'w') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def test_a_caption_that_cannot_be_read_is_skipped_as_images_are(tmp_path):
  image = io.BytesIO()
  Image.new('RGB', (16, 16)).save(image, 'png')
  files = {f'{number}.png': image.getvalue() for number in range(4)}
  files |= {f'{number}.txt': b'cup %d' % number for number in range(4)}
  write_tar(tmp_path / '0.tar', files | {'2.txt': b'caf\xe9'})
  settings = with_captions(
    f'shards:{tmp_path}', 'data.text.unique=true', 'data.text.tokenizer=',
    'model.text.vocabulary_size=516', 'batch_size=4', 'data.max_broken=0.3',
  )  # fmt: skip
  found, said = inputs.open_inputs(settings), []
  mesh = mesh_lib.make(settings.mesh, jax.devices()[:1])
  found = dataclasses.replace(found, names=('image',))
  batches = inputs.train_batches(
    settings, found, mesh, 0, lambda *given: said.append(given)
  )
  with contextlib.closing(batches):
    next(batches)
  ((name, reason),) = said
  assert name == f'{tmp_path}/0.tar: 2' and "can't decode" in reason
