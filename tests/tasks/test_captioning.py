"""Captions token by token: what is predicted from what, and what counts."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import clip
from vit_jax.models.text import TextTransformer
from vit_jax.tasks import captioning
from vit_jax.tasks.captioning import Captioning
from vit_jax.training import mesh as mesh_lib

KEY = jax.random.key(0)
VIT = dict(name='vit', patch_size=4, width=16, depth=1, mlp_dim=24, num_heads=2)
TEXT = dict(
  vocabulary_size=10, length=7, width=12, depth=2, mlp_dim=16, num_heads=2
)
START, END = 8, 9
# Padding has the id of a word; the last has no padding, the third no words.
TEXTS = np.array(
  [
    [START, 1, 3, 1, END, 0, 0],
    [START, 4, END, 0, 0, 0, 0],
    [START, END, 0, 0, 0, 0, 0],
    [START, 0, 5, 2, 7, 0, END],
  ],
  np.int32,
)
# Numbers of words, with the end.
LENGTHS = np.array([4, 2, 1, 6])


def task(**text):
  model = clip.make(image=VIT, text={**TEXT, **text}, width=8)
  return Captioning(model, (8, 8, 3), None)


def noise(seed, *shape):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def batch():
  return dict(
    image=noise(1, 4, 8, 8, 3),
    text=jnp.asarray(TEXTS),
    identity=jnp.arange(4),
    truncated=jnp.asarray([False, False, False, True]),
  )


def noisy(made):
  """Returns variables with noise on every tensor, so that nothing cancels."""
  leaves, tree = jax.tree.flatten(jax.eval_shape(made.init, KEY))
  values = [0.4 * noise(i, *x.shape) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, values)


def predicting(made, chances):
  """Returns variables that predict the same token everywhere."""
  variables = noisy(made)
  last = variables['params']['prediction']
  last['kernel'] = jnp.zeros_like(last['kernel'])
  last['bias'] = jnp.log(jnp.asarray(chances))
  return variables


CHANCES = np.array([0.1, 0.3, 0.05, 0.2, 0.05, 0.05, 0.05, 0.05, 0.05, 0.1])


def test_known_values():
  made, given = task(), batch()
  variables = predicting(made, CHANCES)
  # Words and end, never the start or padding.
  logs = [np.log(CHANCES[row[1 : 1 + n]]) for row, n in zip(TEXTS, LENGTHS)]
  metrics = jax.jit(made.metrics)
  found = metrics(variables, given)
  means = [-x.mean() for x in logs]
  np.testing.assert_allclose(found['loss'], means, atol=1e-6)
  np.testing.assert_allclose(found['accuracy'], [0.5, 0, 0, 0], atol=1e-6)
  loss, means_of_batch, others = jax.jit(made.loss)(variables, given, KEY, 0)
  np.testing.assert_allclose(loss, np.mean(means), atol=1e-6)
  assert means_of_batch['truncated'] == 0.25 and not others
  scores = jax.jit(made.scores)(variables, given['image'], given['text'])
  sums = np.broadcast_to([x.sum() for x in logs], (4, 4))
  np.testing.assert_allclose(scores, sums, atol=1e-5)
  # Before anything is learned all tokens are as likely.
  guessed = metrics(jax.jit(made.init)(KEY), given)
  np.testing.assert_allclose(guessed['loss'], np.log(10), atol=1e-5)


def likelihood(made, variables, image, row):
  """Returns log-likelihoods of a text's tokens, showing one more at a time."""
  parts = variables['params']
  features, _ = jax.jit(made.model.image.apply)(
    {'params': parts['image']}, image[None]
  )
  kernel, bias = parts['start']['kernel'], parts['start']['bias']
  start = features @ kernel + bias
  tower = jax.jit(
    lambda seen: made.model.text.apply(
      {'params': parts['text']}, seen, start=start
    )[1]['encoded']
  )
  found = []
  for place in range(1, row.argmax() + 1):
    seen = np.where(np.arange(7) < place, row, 0)[None]
    x = np.asarray(tower(seen))[0, place - 1]
    logits = x @ parts['prediction']['kernel'] + parts['prediction']['bias']
    found.append(jax.nn.log_softmax(logits)[row[place]])
  return np.array(found)


@pytest.mark.parametrize('chunk', [2**26, 4 * 7 * 10 * 3, 1])
def test_scores_are_the_chances_of_each_token_after_those_before(
  chunk, monkeypatch
):
  monkeypatch.setattr(captioning, '_CHUNK', chunk)
  made, given = task(), batch()
  variables = noisy(made)
  text = np.concatenate([TEXTS, TEXTS[:1]])
  scores = jax.jit(made.scores)(variables, given['image'], text)
  assert scores.shape == (4, 5) and scores.dtype == jnp.float32
  for i, j in [(0, 0), (2, 0), (1, 3), (3, 2), (3, 4)]:
    parts = likelihood(made, variables, given['image'][i], text[j])
    np.testing.assert_allclose(scores[i, j], parts.sum(), atol=1e-4)
  own = jax.jit(made.metrics)(variables, given)['loss']
  np.testing.assert_allclose(jnp.diagonal(scores), -own * LENGTHS, atol=1e-4)


def test_the_image_and_all_words_in_their_order_matter_and_nothing_else():
  made = task()
  variables = noisy(made)
  text = np.array(
    [
      [START, 1, 3, 2, END, 0, 0],
      # Another start, other padding.
      [4, 1, 3, 2, END, 5, 8],
      # Other orders, another word.
      [START, 3, 1, 2, END, 0, 0],
      [START, 1, 2, 3, END, 0, 0],
      [START, 1, 3, 4, END, 0, 0],
    ]
  )
  scores = jax.jit(made.scores)(variables, batch()['image'], text)
  np.testing.assert_allclose(scores[:, 1], scores[:, 0], atol=1e-5)
  for other in (2, 3, 4):
    assert np.abs(scores[:, other] - scores[:, 0]).min() > 1e-3
  assert np.ptp(scores, axis=0).min() > 1e-3


def test_the_text_tower_is_that_of_clip():
  tower = TextTransformer(**TEXT)
  variables = {'params': noisy(task())['params']['text']}
  first = variables['params']['embedding']['embedding'][TEXTS[:, 0]]

  def run(**options):
    return jax.jit(lambda: tower.apply(variables, TEXTS, **options))()

  jax.tree.map(np.testing.assert_array_equal, run(), run(start=first))
  pooled, _ = run(start=first + noise(3, *first.shape))
  assert np.abs(pooled - run()[0]).min(axis=0).max() > 1e-3


@pytest.mark.parametrize('scan', [False, True])
def test_every_parameter_learns_and_none_is_idle(scan):
  made, given = task(scan=scan, dropout=0.1), batch()
  params = noisy(made)['params']
  assert set(params) == {'image', 'text', 'start', 'prediction'}

  @jax.jit
  @jax.grad
  def slopes(params):
    return made.loss({'params': params}, given, KEY, 0)[0]

  gradients = slopes(params)
  found = flax.traverse_util.flatten_dict(gradients, sep='/')
  for path, value in found.items():
    assert np.isfinite(value).all(), path
    # It adds the same to all logits of a query, which softmax does not see.
    if not path.endswith('key/bias'):
      assert np.abs(value).max() > 1e-7, path


def test_devices_agree():
  made = task()
  variables, image = noisy(made), noise(5, 8, 8, 8, 3)
  plain = jax.jit(made.scores)(variables, image, TEXTS)
  mesh = jax.make_mesh(
    (4, 2, 1), mesh_lib.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
  )
  with jax.set_mesh(mesh):
    split = jax.device_put(image, mesh_lib.batch_sharding(mesh))
    found = jax.jit(made.scores)(variables, split, TEXTS)
  np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize(
  'text, message',
  [(dict(causal=False), 'causal'), (dict(pooling='map'), 'map')],
)
def test_towers_that_cannot_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    task(**text)
