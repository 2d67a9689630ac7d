"""Pictures of models of images and texts."""

import io
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax import analyze, command_line
from vit_jax.analysis import (
  examples,
  pictures,
  probe,
  text_examples,
  text_pictures,
)
from vit_jax.config import ConfigError


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('ab\n\na very long text\nab\nX\n')
  return path


def test_texts_are_read_as_the_model_takes_them(open_clip, file):
  model = open_clip()
  texts = text_examples.read(model, file, 9)
  assert texts.names == ('ab', 'a very long text', 'X')
  assert texts.tokens[0] == ('<start>', 'a', 'b', '<end>')
  assert texts.tokens[2] == ('<start>', 'x', '<end>')
  # The end is the highest id; of a text that is too long it is the last.
  np.testing.assert_array_equal(texts.ends, [3, 11, 2])
  np.testing.assert_array_equal(texts.inputs.argmax(1), texts.ends)
  captions = text_examples.read(model, None, 7)
  assert len(set(captions.names)) == 7
  assert captions.first(3).names == text_examples.read(model, None, 3).names


def test_a_text_tower_that_attends_to_all_alike(open_clip, file):
  model = open_clip()
  for name in ('block_00', 'block_01'):
    attention = model.variables['params']['text']['encoder'][name]['attention']
    attention['query'] = jax.tree.map(np.zeros_like, attention['query'])
  texts = text_examples.read(model, file, 3)
  # To each of n tokens, the i-th sees i, on average (i - 1) / 2 away.
  expected = (texts.ends - 1) / 4
  numbers = text_pictures.attention_distance(model, texts).numbers
  found = numbers['each_text']
  assert found.shape == (3, 2, 2)
  for text, distance in zip(found, expected):
    np.testing.assert_allclose(text, distance, atol=1e-5)
  assert numbers['all_alike'] == pytest.approx(expected.mean(), abs=1e-5)
  alike = np.tril(np.ones((12, 12)))
  alike /= alike.sum(1, keepdims=True)
  answer = text_pictures.attention_heads(model, texts)
  assert np.abs(answer.numbers['weights'] - alike).max() < 1e-5
  assert len(answer.each) == 3
  mixing = (alike + np.eye(12)) / 2
  shares = text_pictures.attention_map(model, texts).numbers['shares']
  np.testing.assert_allclose(shares, (mixing @ mixing)[texts.ends], atol=1e-5)


def test_the_attention_of_clips_resnet_is_that_which_pools(open_clip):
  resnet = dict(
    name='modified_resnet', stages=(1, 1, 1, 1), width=4, num_heads=2
  )
  model = open_clip(resnet)
  attention = model.variables['params']['image']['pooling']['attention']
  attention['query'] = jax.tree.map(np.zeros_like, attention['query'])
  given = examples.read(model, None, 2, print)
  flat = np.ones((2, 2, 2))
  maps = pictures.attention_map(model, given).numbers['maps']
  np.testing.assert_allclose(maps, flat, atol=1e-5)
  heads = pictures.attention_heads(model, given).numbers['maps']
  assert heads.shape == (2, 1, 2, 2, 2)
  assert probe.position_tables(model).shape == (1, 2, 2, 128)
  found = pictures.features(model, given).numbers['features']
  assert found.shape == (2, 2, 2, 128)
  with pytest.raises(ConfigError, match='do not attend to each other'):
    pictures.attention_distance(model, given)


def test_both_towers_on_one_page(open_clip, file, tmp_path, monkeypatch):
  model = open_clip(dict(
    name='vit', patch_size=8, width=8, depth=1, mlp_dim=8, num_heads=2,
    pooling='map', pre_norm=True,
  ))  # fmt: skip
  monkeypatch.setattr(command_line, 'open_model', lambda *_: model)
  console = Console(file=io.StringIO(), width=80)
  workdir = ('--workdir=runs/clip', f'--out={tmp_path}')
  analyze.main(('all', '--number=3', *workdir), console)
  arguments = ('all', *workdir, '--tower=text', f'--texts={file}', '--html')
  analyze.main(arguments, console)
  sections = re.findall(
    '<section id="([^"]+)"', (tmp_path / 'index.html').read_text()
  )
  assert sections == [
    *pictures.QUESTIONS,
    *(f'text-{name}' for name in text_pictures.QUESTIONS),
  ]
  said = (tmp_path / 'text-features.txt').read_text()
  assert f'step 0, with 3 texts of {file}.' in said
  assert (
    'with 3 images of the test data.' in (tmp_path / 'features.txt').read_text()
  )
