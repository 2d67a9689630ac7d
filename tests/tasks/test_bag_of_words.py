"""The bag of words: what its loss is, and what scores of texts compare."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import clip
from vit_jax.tasks import bag_of_words
from vit_jax.tasks.bag_of_words import BagOfWords

KEY = jax.random.key(0)
VIT = dict(name='vit', patch_size=4, width=16, depth=1, mlp_dim=24, num_heads=2)
RESNET = dict(name='modified_resnet', stages=(1, 1, 1, 1), width=4, num_heads=4)
START, END = 8, 9
# A word twice, the word whose id padding has, one word, none.
TEXTS = np.array(
  [
    [START, 1, 3, 1, END, 0, 0],
    [START, 0, 5, 2, 7, 0, END],
    [START, 4, END, 0, 0, 0, 0],
    [START, END, 0, 0, 0, 0, 0],
  ],
  np.int32,
)
BAGS = [[1, 3, 1], [0, 5, 2, 7, 0], [4], []]


def task(image=None, size=8):
  text = dict(
    vocabulary_size=10, length=7, width=12, depth=1, mlp_dim=16, num_heads=2
  )
  model = clip.make(image=image or VIT, text=text, width=8)
  return BagOfWords(model, (size, size, 3), None)


def noise(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def batch(size=8):
  return dict(
    image=noise(1, 4, size, size, 3),
    text=jnp.asarray(TEXTS),
    identity=jnp.arange(4),
    truncated=jnp.asarray([False, True, False, False]),
  )


def noisy(made):
  """Returns variables with noise on every tensor, so that nothing cancels."""
  leaves, tree = jax.tree.flatten(jax.eval_shape(made.init, KEY))
  values = [0.3 * noise(i, *x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, values)


def predicting(made, chances):
  """Returns variables that predict the same tokens of every image."""
  variables = noisy(made)
  last = variables['params']['prediction']
  last['kernel'] = jnp.zeros_like(last['kernel'])
  last['bias'] = jnp.log(jnp.asarray(chances))
  return variables


def log_chances(made, variables, image):
  """Returns [images, vocabulary] by NumPy, from the features of the tower."""
  features, _ = jax.jit(made.model.image.apply)(
    {'params': variables['params']['image']}, image
  )
  last = jax.device_get(variables['params']['prediction'])
  logits = np.asarray(features, np.float64) @ last['kernel'] + last['bias']
  return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def shares(bag):
  return np.bincount(bag, minlength=10) / max(len(bag), 1)


def test_known_values():
  chances = np.array([0.1, 0.4, 0.05, 0.2, 0.05, 0.05, 0.05, 0.05, 0.02, 0.03])
  made = task()
  metrics = jax.jit(made.metrics)
  found = metrics(predicting(made, chances), batch())
  # Two of three words have the chance 0.4, one has 0.2, and so on.
  losses = [
    -(2 * np.log(0.4) + np.log(0.2)) / 3,
    -(2 * np.log(0.1) + 3 * np.log(0.05)) / 5,
    -np.log(0.05),
    0,
  ]
  np.testing.assert_allclose(found['loss'], losses, atol=1e-6)
  smallest = [
    -(2 / 3 * np.log(2 / 3) + np.log(1 / 3) / 3),
    -(2 / 5 * np.log(2 / 5) + 3 / 5 * np.log(1 / 5)),
    0,
    0,
  ]
  np.testing.assert_allclose(
    found['divergence'], np.subtract(losses, smallest), atol=1e-6
  )
  np.testing.assert_array_equal(found['accuracy'], [1, 0, 0, 0])
  # Before anything is learned all tokens are as likely.
  guessed = metrics(jax.jit(made.init)(KEY), batch())
  np.testing.assert_allclose(guessed['loss'][:3], np.log(10), atol=1e-5)


def test_loss_is_the_cross_entropy_of_normalised_bags():
  made, given = task(), batch()
  variables = noisy(made)
  loss, metrics, others = jax.jit(made.loss)(variables, given, KEY, 0)
  logs = log_chances(made, variables, given['image'])
  expected = -np.mean([x @ shares(bag) for x, bag in zip(logs, BAGS)])
  np.testing.assert_allclose(loss, expected, atol=1e-5)
  assert metrics['truncated'] == 0.25 and not others
  parts = jax.jit(made.metrics)(variables, given)
  np.testing.assert_allclose(parts['loss'].mean(), loss, atol=1e-6)


@pytest.mark.parametrize('chunk', [2**26, 2 * 4 * 7, 1])
def test_scores_of_all_pairs(chunk, monkeypatch):
  monkeypatch.setattr(bag_of_words, '_CHUNK', chunk)
  made, given = task(), batch()
  variables = noisy(made)
  text = jnp.concatenate([given['text'], given['text'][:1]])
  scores = jax.jit(made.scores)(variables, given['image'], text)
  logs = log_chances(made, variables, given['image'])

  def divergence(logs, share):
    known = share > 0
    return (share[known] * (np.log(share[known]) - logs[known])).sum()

  expected = [
    [-divergence(x, shares(bag)) for bag in (*BAGS, BAGS[0])] for x in logs
  ]
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  own = jax.jit(made.metrics)(variables, given)['divergence']
  np.testing.assert_allclose(jnp.diagonal(scores), -own, atol=1e-6)


def test_order_and_padding_do_not_matter_but_words_do():
  made = task()
  variables, image = noisy(made), batch()['image']
  score = jax.jit(made.scores)
  plain = [START, 1, 3, 1, 0, END, 0, 0]
  same = [
    [START, 0, 1, 1, 3, END, 0, 0],
    [START, 1, 0, 3, 1, END, 7, 2],
    [0, 1, 0, 3, 1, END, 0, 0],
  ]
  other = [[START, 1, 3, 0, 0, END, 0, 0], [START, 1, 3, 1, END, 0, 0, 0]]
  first, *rest = score(variables, image, np.array([plain, *same, *other])).T
  for scores in rest[:3]:
    np.testing.assert_allclose(scores, first, atol=1e-6)
  for scores in rest[3:]:
    assert np.abs(scores - first).min() > 1e-3
  shorter = score(variables, image, np.array([plain[:6]]))
  np.testing.assert_allclose(shorter[:, 0], first, atol=1e-6)


def test_the_whole_text_beats_a_part_of_it():
  made = task()
  # What is seen has the words 1, 2 and 3.
  chances = np.full(10, 1e-6)
  chances[1:4] = 1 / 3
  text = np.zeros((3, 7), np.int32)
  text[:, :6] = [
    [START, 1, 2, 3, END, 0],
    [START, 1, 2, END, 0, 0],
    [START, 1, 2, 3, 4, END],
  ]
  scores = jax.jit(made.scores)(
    predicting(made, chances), batch()['image'], text
  )
  assert (scores.argmax(1) == 0).all()
  np.testing.assert_allclose(scores[:, 0], 0, atol=1e-4)


@pytest.mark.parametrize('image, size', [(VIT, 8), (RESNET, 32)])
def test_every_parameter_learns_and_none_is_idle(image, size):
  made, given = task(image, size), batch(size)
  variables = noisy(made)
  params = variables.pop('params')
  assert set(params) == {'image', 'prediction'}
  variables = jax.tree.map(lambda x: 1 + jnp.abs(x), variables)

  def loss(params):
    value, _, others = made.loss({'params': params, **variables}, given, KEY, 0)
    return value, others

  gradients, others = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert jax.tree.structure(others) == jax.tree.structure(variables)
  found = flax.traverse_util.flatten_dict(gradients, sep='/')
  for path, value in found.items():
    assert np.isfinite(value).all(), path
    # It adds the same to all logits of a query, which softmax does not see.
    if not path.endswith('key/bias'):
      assert np.abs(value).max() > 1e-7, path
  for before, after in zip(*map(jax.tree.leaves, (variables, others))):
    assert not np.array_equal(before, after)
