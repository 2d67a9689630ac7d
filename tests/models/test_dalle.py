"""DALL-E: its size, what predicts what, its loop over periods of layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import dalle, transformer
from vit_jax.models.vit import count_parameters

TEXT = jnp.asarray([[7, 3, 4, 8, 0], [7, 5, 8, 0, 0], [7, 1, 2, 6, 8]])


def small(**fields):
  sizes = dict(
    text_vocabulary=9, text_length=5, image_vocabulary=13, grid=(4, 3),
    width=24, depth=6, mlp_dim=40, num_heads=3,
  )  # fmt: skip
  return dalle.DallE(**{**sizes, **fields})


def codes(batch=3, length=12):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, 13, (batch, length)), jnp.int32)


@functools.cache
def noisy(model):
  """Returns variables with noise on every tensor, so that nothing cancels."""
  tree = jax.eval_shape(model.init, jax.random.key(0), TEXT, codes())
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), tree
  )


def test_the_model_of_the_paper():
  model = dalle.DallE()
  text = jax.ShapeDtypeStruct((1, 256), jnp.int32)
  image = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), text, image)['params']
  width = 3968
  block = 4 * (width + 1) * width + 8 * width**2 + 5 * width + 4 * width
  assert count_parameters(params['encoder']) == 64 * block + 2 * width
  assert 12.0e9 < count_parameters(params['encoder']) < 12.1e9
  ids = 16_384 + 256 + 8192
  embeddings = (ids + 1 + 256 + 32 + 32) * width
  heads = ids * (width + 1)
  assert count_parameters(params) == 64 * block + 2 * width + embeddings + heads
  kinds = [pattern.kind for pattern in model.layer_patterns()]
  assert [kinds.count(k) for k in ('row', 'column', 'convolutional')] == [
    47, 16, 1,
  ]  # fmt: skip
  columns = [i for i, kind in enumerate(kinds, 1) if kind == 'column']
  assert columns == list(range(2, 63, 4)) and kinds[-1] == 'convolutional'
  assert transformer.period_of(tuple(kinds)) == 4


def test_padding_follows_the_end():
  marked = dalle.mark_padding(TEXT)
  expected = [[7, 3, 4, 8, -1], [7, 5, 8, -1, -1], [7, 1, 2, 6, 8]]
  np.testing.assert_array_equal(marked, expected)
  labels = small().text_labels(marked)
  np.testing.assert_array_equal(labels[1], [7, 5, 8, 12, 13])


def test_nothing_sees_what_it_predicts():
  model = small(patterns=('row', 'column', 'full'))
  variables, text, image = noisy(model), dalle.mark_padding(TEXT), codes()

  @jax.jit
  def predict(text, image):
    of_text, of_image = model.apply(variables, text, image)[0]
    assert of_text.shape == (3, 5, 14) and of_image.shape == (3, 12, 13)
    return of_text[0], of_image[0]

  of_text, of_image = predict(text, image)
  for place in range(5):
    changed, images = predict(text.at[0, place].set(6), image)
    np.testing.assert_array_equal(changed[: place + 1], of_text[: place + 1])
    moved = np.abs(changed - of_text).max(-1)[place + 1 :]
    assert (moved > 1e-3).all()
    assert (np.abs(images - of_image).max(-1) > 1e-3).all()
  for place in range(12):
    other = image.at[0, place].set((image[0, place] + 5) % 13)
    texts, changed = predict(text, other)
    np.testing.assert_array_equal(texts, of_text)
    np.testing.assert_array_equal(changed[: place + 1], of_image[: place + 1])
    if place < 11:
      assert np.abs(changed - of_image)[place + 1].max() > 1e-3


def test_codes_of_one_vector_are_one():
  model = small(code_width=4)
  variables = noisy(model)
  vectors = variables['constants']['code_vectors']
  variables['constants'] = {'code_vectors': vectors.at[7].set(vectors[3])}
  image = codes()
  assert np.isin([3, 7], image).all()
  (_, logits), _ = model.apply(variables, TEXT, image)
  np.testing.assert_allclose(logits[..., 7], logits[..., 3], atol=1e-5)
  (_, same), _ = model.apply(variables, TEXT, jnp.where(image == 7, 3, image))
  np.testing.assert_allclose(logits, same, atol=1e-5)
  (_, other), _ = model.apply(variables, TEXT, jnp.where(image == 7, 2, image))
  assert np.abs(logits - other).max() > 1e-2


@pytest.mark.parametrize('code_width', [0, 4])
def test_every_parameter_learns(code_width):
  model, text = small(code_width=code_width), dalle.mark_padding(TEXT)

  @jax.jit
  def gradients(variables):
    def loss(variables):
      of_text, of_image = model.apply(variables, text, codes())[0]
      return jnp.sin(of_text).sum() + jnp.sin(of_image).sum()

    return jax.grad(loss)(variables)['params']

  for path, leaf in jax.tree_util.tree_leaves_with_path(
    gradients(noisy(model))
  ):
    # It adds the same to all logits of a query, which softmax does not see.
    if 'key' not in str(path) or 'bias' not in str(path):
      assert np.abs(leaf).max() > 1e-4, path


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize(
  'depth,patterns', [(6, ('row', 'column')), (3, ('full', 'row', 'column'))]
)
def test_a_loop_over_layers_is_the_same(depth, patterns, remat):
  looped = small(depth=depth, patterns=patterns, scan=True, remat=remat)
  plain = small(depth=depth, patterns=patterns)
  variables = noisy(looped)
  assert 'blocks' in variables['params']['encoder']
  unrolled = dict(variables['params'])
  unrolled['encoder'] = transformer.unrolled(unrolled['encoder'])
  text = dalle.mark_padding(TEXT)

  def value(model, params):
    of_text, of_image = model.apply({'params': params}, text, codes())[0]
    return jnp.sin(of_text).sum() + jnp.sin(of_image).sum()

  both = [
    jax.jit(jax.value_and_grad(functools.partial(value, model)))(params)
    for model, params in ((looped, variables['params']), (plain, unrolled))
  ]
  both[0][1]['encoder'] = transformer.unrolled(both[0][1]['encoder'])
  leaves = [jax.tree_util.tree_leaves_with_path(x) for x in both]
  for (path, one), (same_path, other) in zip(*leaves, strict=True):
    assert path == same_path
    np.testing.assert_allclose(one, other, atol=1e-4, err_msg=path)


def test_whole_rows_predict_the_next_code():
  model, text = small(), dalle.mark_padding(TEXT)
  variables = noisy(model)
  whole = jax.jit(model.apply)(variables, text, codes())[0][1]
  for rows in range(4):
    part = jax.jit(model.apply)(variables, text, codes()[:, : 3 * rows])[0][1]
    np.testing.assert_allclose(part, whole[:, : 3 * rows + 1], atol=1e-5)


@pytest.mark.parametrize(
  'fields,message',
  [
    ({'width': 25}, '25 cannot be shared by 3'),
    ({'patterns': ('diagonal',)}, 'expected one or more of full, row'),
    ({'grid': (4,)}, 'expected rows and columns'),
    ({'dropout': 1.0}, 'dropout is 1.0'),
    ({'depth': 0}, 'depth is 0'),
    ({'text_length': 6}, r'expected \[batch, 6\]'),
    ({'grid': (2, 5)}, '2 whole rows of 5'),
  ],
)
def test_impossible_sizes_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(small(**fields).init, jax.random.key(0), TEXT, codes())
