"""Contrastive losses equal sums over all pairs, written out in float64."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax.tasks import contrastive_loss

PAIRS, WIDTH = 32, 12
NAMES = ('image', 'text', 'log_scale', 'bias')
# Pairs 3, 20 and 31 are the same, and 5 and 6: near, and on other devices.
DUPLICATES = np.arange(PAIRS)
DUPLICATES[[20, 31]] = 3
DUPLICATES[6] = 5


def features(pairs=PAIRS, width=WIDTH):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(2, pairs, width))
  values[1] += values[0]  # Better than chance.
  return values / np.linalg.norm(values, axis=-1, keepdims=True)


def by_hand(kind, image, text, log_scale, bias, identity):
  """Returns loss and gradients, from the formulas of both papers."""
  count = len(image)
  identity = np.arange(count) if identity is None else identity
  scale = np.exp(log_scale)
  cosine = image @ text.T
  same = np.array([[float(a == b) for b in identity] for a in identity])
  if kind == 'softmax':
    logits = scale * cosine
    rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    columns = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
    target = same / same.sum(1, keepdims=True)
    loss = -(target * np.log(rows)).sum() - (target.T * np.log(columns)).sum()
    loss /= 2 * count
    by_logits = (rows + columns - target - target.T) / (2 * count)
  else:
    logits = scale * cosine + bias
    sign = 2 * same - 1
    loss = np.log1p(np.exp(-sign * logits)).sum() / count
    by_logits = -sign / (1 + np.exp(sign * logits)) / count
  return loss, {
    'image': scale * by_logits @ text,
    'text': scale * by_logits.T @ image,
    'log_scale': scale * (by_logits * cosine).sum(),
    'bias': by_logits.sum() if kind == 'sigmoid' else 0.0,
  }


@contextlib.contextmanager
def mesh_of(shape):
  """A mesh of some of the simulated devices; None is no mesh."""
  if shape is None:
    yield None
    return
  mesh = jax.make_mesh(
    shape,
    ('data', 'fsdp', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
    devices=jax.devices()[: math.prod(shape)],
  )
  with jax.set_mesh(mesh):
    yield mesh


def given(kind, identity, **options):
  """Returns the loss as a function of (image, text, log_scale, bias)."""
  function = getattr(contrastive_loss, f'{kind}_loss')
  if identity is not None:
    options['identity'] = jnp.asarray(identity)
  if 'softmax' in kind:
    return lambda image, text, log_scale, bias: function(
      image, text, log_scale, **options
    )
  return lambda *arguments: function(*arguments, **options)


def placed(mesh, values):
  """Puts features in parts on the devices of a mesh."""
  values = [jnp.asarray(value, jnp.float32) for value in values]
  if mesh is None:
    return values
  split = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  return [jax.device_put(value, split) for value in values]


# A ring of some rows at a time (3 at most: 2 divide the 4 or 8 of a device), or
# of all that a device has (0).
@pytest.mark.parametrize(
  'kind,shape,identity,rows',
  [
    (prefix + kind, *case)
    for kind in ('softmax', 'sigmoid')
    for prefix, *case in [
      ('', None, None, 0),
      ('', None, DUPLICATES, 0),
      ('', (8, 1, 1), DUPLICATES, 0),
      ('ring_', None, None, 3),
      ('ring_', (8, 1, 1), None, 0),
      ('ring_', (8, 1, 1), DUPLICATES, 3),
      ('ring_', (2, 2, 2), DUPLICATES, 3),
    ]
  ],
)
def test_values_and_gradients_are_the_sums_over_all_pairs(
  kind, shape, identity, rows
):
  image, text = features()
  log_scale, bias = math.log(9.0), -2.5
  expected, by_all = by_hand(
    kind.removeprefix('ring_'), image, text, log_scale, bias, identity
  )
  with mesh_of(shape) as mesh:
    loss = given(kind, identity, **({'rows': rows} if rows else {}))
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(
      *placed(mesh, (image, text)), log_scale, bias
    )
  found = dict(zip(NAMES, gradients), loss=value)
  for name, exact in dict(by_all, loss=expected).items():
    tolerance = 1e-6 * max(1, np.abs(exact).max())
    np.testing.assert_allclose(
      found[name], exact, atol=tolerance, rtol=0, err_msg=name
    )


@pytest.mark.parametrize('kind', ['ring_softmax', 'ring_sigmoid'])
def test_the_memory_of_a_ring_grows_with_the_batch_not_its_square(kind):
  def temporary(kind, pairs):
    shape = jax.ShapeDtypeStruct((pairs, 8), jnp.float32)
    with mesh_of((8, 1, 1)) as mesh:
      split = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
      shape = shape.update(sharding=split)
      options = {'rows': 16} if 'ring' in kind else {}
      loss = given(kind, None, **options)
      compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
        .lower(shape, shape, 2.0, -1.0)
        .compile()
      )
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = (temporary(kind, pairs) for pairs in (1024, 4096))
  assert large < 6 * small
  whole = temporary(kind.removeprefix('ring_'), 4096)
  assert large < whole / 4


def test_the_scale_has_a_limit_that_only_a_lower_value_leaves():
  limit = math.log(100)
  scale = contrastive_loss.similarity_scale
  for sign in (1, -1):
    value, gradient = jax.value_and_grad(lambda x, s=sign: s * scale(x))(2.0)
    np.testing.assert_allclose([value, gradient], [sign * math.exp(2)] * 2)
  for beyond in (limit + 0.01, 50.0):
    np.testing.assert_allclose(scale(beyond), 100, rtol=1e-5)
    # Descent subtracts the gradient.
    down = jax.grad(scale)(beyond)
    up = jax.grad(lambda x: -scale(x))(beyond)
    np.testing.assert_allclose([down, up], [100, 0], rtol=1e-5)


def test_the_bias_makes_a_match_as_likely_as_it_is():
  bias = contrastive_loss.initial_bias(64)
  np.testing.assert_allclose(1 / (1 + math.exp(-bias)), 1 / 64, rtol=1e-6)
  with pytest.raises(ValueError, match='a batch of 1 has'):
    contrastive_loss.initial_bias(1)


def test_features_of_low_precision_are_compared_in_float32():
  image, text = (jnp.asarray(x, jnp.bfloat16) for x in features())
  loss = jax.jit(given('softmax', None))(image, text, math.log(90.0), 0)
  exact, _ = by_hand(
    'softmax', *np.float64([image, text]), math.log(90.0), 0, None
  )
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, exact, atol=1e-5, rtol=0)
