"""Sparse attention equals dense attention behind a mask, and costs less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import attention, layers, sparse_attention
from vit_jax.models.sparse_attention import Pattern
from vit_jax.training import flops

KINDS = ('row', 'column', 'convolutional')
# Of a grid of 3 x 3 after two text tokens.
SEEN = {
  'row': """
    x........
    xx.......
    xxx......
    xxxx.....
    .xxxx....
    ..xxxx...
    ...xxxx..
    ....xxxx.
    .....xxxx""",
  'column': """
    x........
    .x.......
    ..x......
    x..x.....
    .x..x....
    ..x..x...
    x..x..x..
    .x..x..x.
    ..x..x..x""",
}


def noise(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def dense(query, key, value, seen):
  """Softmax behind a mask, in float64."""
  query, key, value = (np.float64(x) for x in (query, key, value))
  logits = np.einsum('bqhd,bkhd->bhqk', query, key) / query.shape[-1] ** 0.5
  weights = np.exp(np.where(seen, logits, -np.inf))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqk,bkhd->bqhd', weights, value), weights


def gradients_by_hand(query, key, value, weights, gradient):
  """The chain rule of `dense`."""
  query, key, value, gradient = map(np.float64, (query, key, value, gradient))
  scale = query.shape[-1] ** -0.5
  d_weights = np.einsum('bqhd,bkhd->bhqk', gradient, value)
  mean = (d_weights * weights).sum(-1, keepdims=True)
  d_logits = weights * (d_weights - mean) * scale
  return (
    np.einsum('bhqk,bkhd->bqhd', d_logits, key),
    np.einsum('bhqk,bqhd->bkhd', d_logits, query),
    np.einsum('bhqk,bqhd->bkhd', weights, gradient),
  )


@pytest.mark.parametrize('kind', SEEN)
def test_patterns_are_those_of_the_paper(kind):
  seen = sparse_attention.visible(Pattern(kind, 2, (3, 3)))
  expected = [[c == 'x' for c in line] for line in SEEN[kind].split()]
  np.testing.assert_array_equal(seen[2:, 2:], expected)
  assert seen[2:, :2].all() and not seen[:2, 2:].any()
  np.testing.assert_array_equal(seen[:2, :2], np.tri(2))


def test_convolutions_see_eleven_by_eleven():
  rows, columns = 14, 15
  seen = sparse_attention.visible(Pattern('convolutional', 1, (rows, columns)))
  image = seen[1:, 1:].reshape(rows, columns, rows, columns)
  expected = np.zeros((rows, columns), bool)
  expected[2:7, 2:13] = True
  expected[7, 2:8] = True
  # Far from the edges, where offsets do not wrap around.
  np.testing.assert_array_equal(image[7, 7], expected)
  assert sparse_attention.visible(Pattern('full', 1, (3, 3))).sum() == 55


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'text,grid,block',
  [(5, (6, 4), 1), (5, (6, 4), 12), (3, (4, 12), None), (2, (1, 5), 64)],
)
def test_values_and_gradients_are_those_of_a_mask(kind, text, grid, block):
  pattern = Pattern(kind, text, grid)
  shape = (2, text + grid[0] * grid[1], 3, 8)
  inputs = [noise(seed, *shape) for seed in range(3)]
  gradient = noise(3, *shape)

  @jax.jit
  def found(*inputs):
    out, pull_back = jax.vjp(
      lambda *x: sparse_attention.attend(*x, pattern, jnp.float32, block),
      *inputs,
    )
    return out, pull_back(gradient)

  out, gradients = found(*inputs)
  expected, weights = dense(*inputs, sparse_attention.visible(pattern))
  np.testing.assert_allclose(out, expected, atol=1e-5, rtol=0)
  by_hand = gradients_by_hand(*inputs, weights, gradient)
  for one, other in zip(gradients, by_hand):
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


# How much less than dense, at least: products of the forward pass, and memory
# of forward and backward.
@pytest.mark.parametrize(
  'kind,text,grid,less_work,less_memory',
  [
    ('row', 64, (16, 16), 2.4, 3.2),
    ('column', 64, (16, 16), 3.5, 4),
    ('convolutional', 64, (16, 16), 1.5, 2),
    ('row', 256, (32, 32), 3.8, 5),
    ('column', 256, (32, 32), 4.5, 5.5),
    ('convolutional', 256, (32, 32), 2.7, 2.6),
  ],
)
def test_patterns_cost_less(kind, text, grid, less_work, less_memory):
  pattern = Pattern(kind, text, grid)
  shape = (1, text + grid[0] * grid[1], 4, 32)
  inputs = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3

  def cost(function):
    def both(*inputs):
      out, pull_back = jax.vjp(function, *inputs)
      return pull_back(out)

    compiled = jax.jit(both).lower(*inputs).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return flops.count_flops(function, *inputs), memory

  def masked(query, key, value):
    seen = sparse_attention.visible(pattern)
    logits = jnp.einsum('bqhd,bkhd->bhqk', query * 32**-0.5, key)
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)

  work, memory = cost(
    lambda *x: sparse_attention.attend(*x, pattern, jnp.float32)
  )
  dense_work, dense_memory = cost(masked)
  assert work * less_work < dense_work
  assert memory * less_memory < dense_memory


# Of a grid of 32 x 32: how many a next code is compared with, and how many of
# the codes before are kept.
@pytest.mark.parametrize(
  'kind,compared,kept',
  [
    ('row', 33, 33),
    ('column', 32, 1024),
    ('convolutional', 5 * 32 + 5 + 1, 5 * 32 + 5 + 1),
    ('full', 1024, 1024),
  ],
)
def test_a_next_code_costs_what_it_sees(kind, compared, kept):
  text, texts, images, heads, depth = 16, 2, 3, 4, 16
  pattern = Pattern(kind, text, (32, 32))
  of_text = jax.ShapeDtypeStruct((texts, text, heads, depth), jnp.float32)
  cache = jax.eval_shape(
    lambda x: sparse_attention.begin(x, x, pattern, images), of_text
  )
  cache = cache._replace(place=jax.ShapeDtypeStruct((), jnp.int32))
  channels = texts * images * heads * depth
  assert cache.key.size == cache.value.size == kept * channels

  def step(query, key, value, cache):
    return sparse_attention.attend_next(
      query, key, value, cache, pattern, jnp.float32
    )

  one = jax.ShapeDtypeStruct((texts, images, heads, depth), jnp.float32)
  inputs = (one, one, one, cache)
  # Two products, of queries with keys and of weights with values.
  work = 2 * 2 * channels * (text + compared)
  assert flops.count_flops(step, *inputs) == work
  # What is kept beside it is neither read nor copied.
  compiled = jax.jit(step, donate_argnums=3).lower(*inputs).compile()
  read = 2 * 4 * channels * (text + compared)
  assert compiled.cost_analysis()['bytes accessed'] < 4 * read


@pytest.mark.parametrize('kind', ['full', *KINDS])
@pytest.mark.parametrize('cpu', [True, False])
def test_weights_are_those_that_were_used(kind, cpu, monkeypatch):
  monkeypatch.setattr(layers, 'on_cpu', lambda: cpu)
  pattern = Pattern(kind, 3, (3, 4))
  model = attention.Attention(2, pattern=pattern, mix_heads=False)
  x = noise(0, 2, 15, 8)
  params = model.init(jax.random.key(0), x)
  out, intermediates = jax.jit(model.apply)(params, x)
  weights = intermediates['attention_weights']
  seen = sparse_attention.visible(pattern)
  assert (np.asarray(weights) > 0)[..., seen].all()
  assert (np.asarray(weights) == 0)[..., ~seen].all()
  expected = jnp.einsum('bhqk,bkhd->bqhd', weights, intermediates['value'])
  np.testing.assert_allclose(out, expected.reshape(out.shape), atol=1e-6)
