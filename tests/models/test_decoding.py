"""Sampling with kept keys and values draws what it would draw without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import dalle, decoding
from vit_jax.models.decoding import Sampling
from vit_jax.training import flops

TEXT = jnp.asarray([[3, 4, 10, -1, -1], [1, 2, 3, 4, 10]])
CODES = 70


def make(**fields):
  sizes = dict(
    text_vocabulary=11, text_length=5, image_vocabulary=CODES, grid=(5, 4),
    width=24, depth=4, mlp_dim=40, num_heads=3,
  )  # fmt: skip
  model = dalle.DallE(**{**sizes, **fields})
  image = jax.ShapeDtypeStruct((2, model.image_length), jnp.int32)
  tree = jax.eval_shape(model.init, jax.random.key(0), TEXT, image)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), tree
  )


def given(number):
  rng = np.random.default_rng(2)
  return jnp.asarray(rng.integers(0, CODES, (2, number)), jnp.int32)


sample = jax.jit(decoding.sample, static_argnums=0)


def without_cache(model, variables, keys, sampling, codes):
  """Computes everything again for each code."""
  texts, images = keys.shape
  length = model.image_length

  @jax.jit
  def draw(codes, place):
    flat = codes.reshape(texts * images, length)
    text = jnp.repeat(TEXT, images, axis=0)

    def logits(text):
      of_all = model.apply(variables, text, flat)[0][1]
      return of_all[:, place].reshape(texts, images, -1)

    nothing = None
    if sampling.guidance is not None:
      nothing = logits(jnp.full_like(text, dalle.NO_TOKEN))
    return decoding.choose(logits(text), nothing, keys, place, sampling)

  codes = jnp.broadcast_to(codes[:, None], (texts, images, codes.shape[1]))
  whole = jnp.zeros((texts, images, length), jnp.int32)
  whole = whole.at[..., : codes.shape[2]].set(codes)
  for place in range(codes.shape[2], length):
    whole = whole.at[..., place].set(draw(whole, place))
  return whole


@pytest.mark.parametrize(
  'fields,sampling,rows',
  [
    ({}, Sampling(), 0),
    ({}, Sampling(0.7, top_k=9, guidance=2.5), 2),
    ({'scan': True, 'patterns': ('row', 'column')}, Sampling(top_p=0.8), 1),
    (
      {'patterns': ('full', 'convolutional'), 'last_pattern': 'column'},
      Sampling(1.5, top_fraction=0.5, guidance=0.5),
      3,
    ),
    (
      {'patterns': ('convolutional',), 'grid': (3, 13), 'code_width': 4},
      Sampling(0.0),
      1,
    ),
  ],
)
def test_the_same_codes_as_without_a_cache(fields, sampling, rows):
  model, variables = make(**fields)
  keys = decoding.candidate_keys(5, 2, 3)
  codes = given(rows * model.grid[1])
  found = sample(model, variables, TEXT, keys, sampling, codes)
  expected = without_cache(model, variables, keys, sampling, codes)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(found[:, 1, : codes.shape[1]], codes)
  # Not all alike, or all of this would say little.
  assert len(np.unique(found)) > 3


def test_sampling_computes_only_what_layers_see():
  def work(**fields):
    model, variables = make(grid=(32, 32), **fields)
    keys = decoding.candidate_keys(0, 2, 3)

    def draw(variables):
      return decoding.sample(model, variables, TEXT, keys, Sampling())

    return flops.count_flops(draw, variables)

  saved = work(patterns=('full',), last_pattern='full') - work()
  # Row, column and row, and the last layer; see test_sparse_attention.
  seen = 33 + 32 + 33 + 166
  # For each code but the first, of six images with 24 channels, by products of
  # queries with keys and of weights with values.
  expected = 1023 * 6 * 24 * 2 * 2 * (4 * 1024 - seen)
  # The first code comes from reading the text, which is the same for both.
  assert saved == pytest.approx(expected, rel=1e-3)


def test_an_image_does_not_depend_on_those_beside_it():
  model, variables = make()
  keys = decoding.candidate_keys(5, 2, 6)
  assert (keys[:, :4] == decoding.candidate_keys(5, 2, 4)).all()
  all_of_them = sample(model, variables, TEXT, keys, Sampling())
  one = sample(model, variables, TEXT[1:], keys[1:, 4:5], Sampling())
  np.testing.assert_array_equal(one[0, 0], all_of_them[1, 4])
  assert len(np.unique(all_of_them.reshape(12, -1), axis=0)) == 12


def test_whole_images_are_left_as_they_are():
  model, variables = make()
  keys = decoding.candidate_keys(0, 2, 2)
  found = sample(model, variables, TEXT, keys, Sampling(), given(20))
  np.testing.assert_array_equal(found[:, 0], given(20))


LOGITS = jnp.asarray(np.random.default_rng(3).normal(size=200) * 2, jnp.float32)


def shares(sampling, draws=40_000, without=None):
  """Returns how often each code is drawn."""
  keys = jax.random.split(jax.random.key(0), (1, draws))
  logits = jnp.broadcast_to(LOGITS, (1, draws, len(LOGITS)))
  if without is not None:
    without = jnp.broadcast_to(without, logits.shape)
  drawn = jax.jit(decoding.choose)(logits, without, keys, 3, sampling)
  return np.bincount(np.asarray(drawn).ravel(), minlength=len(LOGITS)) / draws


@pytest.mark.parametrize(
  'sampling,kept',
  [
    (Sampling(), 200),
    (Sampling(0.5), 200),
    (Sampling(top_k=7), 7),
    (Sampling(2.0, top_fraction=0.1), 20),
    (Sampling(top_k=1), 1),
    (Sampling(top_k=500), 200),
    (Sampling(top_p=0.6), None),
    (Sampling(0.7, top_k=15, top_p=0.9), None),
    (Sampling(top_p=1e-6), 1),
  ],
)
def test_codes_are_drawn_with_their_probability(sampling, kept):
  order = np.argsort(-LOGITS)
  expected = np.exp(np.float64(LOGITS) / sampling.temperature)
  if kept is None:
    expected[order[sampling.top_k or 200 :]] = 0
    expected /= expected.sum()
    kept = 1 + (np.cumsum(expected[order]) < sampling.top_p).sum()
  expected[order[kept:]] = 0
  expected /= expected.sum()
  found = shares(sampling)
  assert not found[expected == 0].any()
  np.testing.assert_allclose(found, expected, atol=0.01)


def test_places_have_random_numbers_of_their_own():
  keys = decoding.candidate_keys(0, 1, 1)
  logits = jnp.zeros((1, 1, 200))
  drawn = [
    int(decoding.choose(logits, None, keys, place, Sampling())[0, 0])
    for place in range(20)
  ]
  assert len({*drawn}) > 15


def test_no_temperature_takes_the_likeliest():
  assert shares(Sampling(0.0), 100)[LOGITS.argmax()] == 1


@pytest.mark.parametrize('temperature', [0.8, 0.0])
def test_guidance_goes_beyond_the_text_among_what_may_be_drawn(temperature):
  rng = np.random.default_rng(8)
  without = np.float32(rng.normal(size=len(LOGITS)))
  order = np.argsort(-LOGITS)
  # Impossible with the text, and yet by far the likeliest by the difference.
  without[order[20:]] -= 30
  logits = np.float64(without + 2.5 * (LOGITS - without))
  logits[order[20:]] = -np.inf
  expected = np.exp((logits - logits.max()) / (temperature or 1e-3))
  expected /= expected.sum()
  found = shares(Sampling(temperature, top_k=20, guidance=2.5), without=without)
  np.testing.assert_allclose(found, expected, atol=0.01)
  assert logits.argmax() != LOGITS.argmax()


@pytest.mark.parametrize(
  'sampling,message',
  [
    (Sampling(-1.0), 'temperature is -1'),
    (Sampling(top_k=0), 'top_k is 0'),
    (Sampling(top_p=1.5), 'top_p is 1.5, expected a number from 0 to 1'),
  ],
)
def test_impossible_settings_are_refused(sampling, message):
  with pytest.raises(ValueError, match=message):
    sampling.check()


def test_layers_are_in_order_however_many_there_are():
  blocks = {f'block_{i:02d}': i for i in reversed(range(101))}
  assert decoding._layers({'blocks': blocks}) == list(range(101))
