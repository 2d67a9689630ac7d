"""Pictures of a DALL-E, of models whose answers are known."""

import io

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax import analyze, command_line
from vit_jax.analysis import decoder_pictures, pair_examples
from vit_jax.config import ConfigError
from vit_jax.models import dalle, sparse_attention

# Start of the stream and text.
LENGTH = 13


def read(model, number=2):
  return pair_examples.read(model, number, print)


def alike(model):
  """Makes all heads attend to all that they see alike; returns that."""
  params = model.variables['params']
  params['encoder'] = jax.tree_util.tree_map_with_path(
    lambda path, leaf: 0 * leaf if 'query' in str(path) else leaf,
    params['encoder'],
  )
  seen = [
    sparse_attention.visible(x) for x in model.task.model.layer_patterns()
  ]
  return np.stack([x / x.sum(-1, keepdims=True) for x in seen])


def test_pairs_are_read_as_the_model_takes_them(open_dalle):
  model = open_dalle(text_length=64)
  pairs = read(model, 3)
  assert pairs.first(2).names == read(model, 2).names
  text, codes = np.split(pairs.inputs, [64], axis=1)
  for row, letters in zip(text, pairs.tokens):
    assert letters[0] == '<start>' and letters[-1] == '<end>'
    assert (row != dalle.NO_TOKEN).sum() == len(letters)
  shown = np.repeat(np.repeat(codes.reshape(3, 2, 3), 4, 1), 4, 2) / 4
  assert len(np.unique(codes)) > 1
  np.testing.assert_allclose(pairs.pixels[..., 2], shown, atol=1e-6)
  with pytest.raises(ConfigError, match='without a discrete VAE'):
    read(open_dalle(codes=None))


@pytest.mark.parametrize('scan', [False, True])
def test_distance_of_a_decoder_that_attends_to_all_alike(open_dalle, scan):
  model = open_dalle(depth=5, scan=scan)
  alike(model)
  pairs = read(model)
  found = decoder_pictures.attention_distance(model, pairs).numbers
  kinds = ['row', 'column', 'row', 'column', 'convolutional']
  assert found['patterns'].tolist() == kinds
  # Of 2 rows of 3 places of 4 x 4 pixels: a row pattern sees three places back
  # in the order of the stream, a column what is above.
  next_to, wraps = np.sqrt(32), np.sqrt(80)
  row = (
    4 / 2 + (8 + 4) / 3 + (4 + next_to + wraps) / 4 + (8 + next_to) / 4 + 16 / 4
  ) / 6
  expected = found['all_alike']
  np.testing.assert_allclose(expected[:2], [row, 3 * 4 / 2 / 6], atol=1e-5)
  for head in range(2):
    np.testing.assert_allclose(found['mean'][:, head], expected, atol=1e-5)


def test_what_is_drawn_from_all_alike(open_dalle):
  model = open_dalle()
  weights, pairs = alike(model), read(model)
  answer = decoder_pictures.attention_heads(model, pairs)
  for of_pair, place in zip(
    answer.numbers['weights'], answer.numbers['places']
  ):
    drawer = weights[:, LENGTH - 1 + place]
    expected = np.repeat(drawer[:, None], 2, axis=1)
    np.testing.assert_allclose(of_pair, expected, atol=1e-5)
  assert len(answer.each) == 2

  through = np.eye(LENGTH + 6)
  for layer in weights:
    through = (layer + np.eye(LENGTH + 6)) / 2 @ through
  words = through[LENGTH - 1 : -1, 1:LENGTH].T.reshape(12, 2, 3)
  answer = decoder_pictures.attention_map(model, pairs)
  for shares in answer.numbers['shares']:
    np.testing.assert_allclose(shares, words, atol=1e-5)


def test_positions_of_text_rows_and_columns(open_dalle):
  model = open_dalle()
  params = model.variables['params']
  found = decoder_pictures.positions(model).numbers
  assert [len(found[x]) for x in ('text', 'row', 'column')] == [12, 2, 3]
  one, other = params['row']
  cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
  assert found['row'][0, 1] == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
  'what,option,message',
  [
    ('filters', (), 'no filters; it has positions, attention-distance'),
    ('positions', ('--tower=text',), 'has no towers. Leave it out'),
    ('positions', ('--images=.',), 'asked about pairs'),
  ],
)
def test_what_a_decoder_lacks(
  what, option, message, open_dalle, tmp_path, monkeypatch
):
  model = open_dalle()
  monkeypatch.setattr(command_line, 'open_model', lambda *_: model)
  console = Console(file=io.StringIO(), width=80)
  arguments = (what, '--workdir=runs/dalle', f'--out={tmp_path}', *option)
  with pytest.raises(ConfigError, match=message):
    analyze.main(arguments, console)


def test_all_pictures_of_a_decoder(open_dalle, tmp_path, monkeypatch):
  model = open_dalle()
  monkeypatch.setattr(command_line, 'open_model', lambda *_: model)
  console = Console(file=io.StringIO(), width=80)
  arguments = ('all', '--workdir=runs/dalle', f'--out={tmp_path}', '--number=2')
  analyze.main((*arguments, '--html'), console)
  made = {path.stem for path in tmp_path.glob('*.png')}
  assert made == decoder_pictures.QUESTIONS.keys()
  assert 'with 2 pairs of' in (tmp_path / 'attention-map.txt').read_text()
  page = (tmp_path / 'index.html').read_text()
  assert page.count('<section') == len(made)
