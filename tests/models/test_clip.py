"""CLIP: its sizes, its towers, what it sees and what it refuses."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import (
  attention,
  clip,
  kernels,
  layers,
  modified_resnet,
  patches,
)
from vit_jax.models.text import TextTransformer
from vit_jax.models.vit import ViT, count_parameters

# Variant, all parameters, image tower, text tower with their projections.
COUNTS = [
  ('RN50', 102_007_137, 38_316_896, 63_690_240),
  ('RN101', 119_688_033, 56_259_936, 63_428_096),
  ('RN50x4', 178_300_601, 87_137_080, 91_163_520),
  ('RN50x16', 290_979_217, 167_328_912, 123_650_304),
  ('RN50x64', 623_258_305, 420_380_352, 202_877_952),
  ('ViT-B/32', 151_277_313, 87_849_216, 63_428_096),
  ('ViT-B/16', 149_620_737, 86_192_640, 63_428_096),
  ('ViT-L/14', 427_616_513, 303_966_208, 123_650_304),
  ('ViT-L/14@336', 427_944_193, 304_293_888, 123_650_304),
]
VIT = dict(
  name='vit', patch_size=8, width=32, depth=1, mlp_dim=48, num_heads=4,
  patch_bias=False, pre_norm=True, activation='quick_gelu', norm_epsilon=1e-5,
)  # fmt: skip
HYBRID = dict(
  name='vit', patch_size=1, width=32, depth=1, mlp_dim=48, num_heads=4,
  backbone_stages=(1, 1), backbone_width_factor=0.5,
)  # fmt: skip
RESNET = dict(name='modified_resnet', stages=(1, 1, 1, 1), width=4, num_heads=4)
TEXT = dict(
  vocabulary_size=30, length=7, width=24, depth=1, mlp_dim=40, num_heads=3
)
SIGMOID = dict(image_head='none', text_head='affine', initial_bias=-2.0)


def make(image=None, text=None, **fields):
  text = {**TEXT, **(text or {})}
  return clip.make(image=image or VIT, text=text, **{'width': 32, **fields})


def noise(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def texts(batch=3):
  """Returns texts with a start, an end and padding."""
  rng = np.random.default_rng(7)
  ids = rng.integers(1, 28, (batch, 7))
  ids[:, 0] = 28
  for row in range(batch):
    ids[row, 2 + row :] = 0
    ids[row, 2 + row] = 29
  return jnp.asarray(ids, jnp.int32)


def noisy(model, *inputs):
  """Returns variables with noise on every tensor, so that nothing cancels."""
  tree = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  result = {}
  for i, (path, leaf) in enumerate(sorted(flat.items())):
    value = noise(i, *leaf.shape)
    if path.endswith('/var'):
      value = 1 + jnp.abs(value)
    elif path.endswith('/scale'):
      value = 1 + 0.2 * value
    else:
      value = 0.2 * value
    result[path] = value
  return flax.traverse_util.unflatten_dict(result, sep='/')


@pytest.mark.parametrize('name,total,image,text', COUNTS)
def test_parameter_counts(name, total, image, text):
  model, size = clip.make(**clip.variant(name)), clip.VARIANTS[name].image_size
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), images, ids)['params']
  assert count_parameters(params) == total
  for side, count in (('image', image), ('text', text)):
    parts = params[side], params[f'{side}_projection']
    assert sum(map(count_parameters, parts)) == count


MODELS = {
  'vit': make(),
  'resnet': make(image=RESNET, image_head='affine'),
  'hybrid': make(
    image=HYBRID, text={'pooling': 'map', 'causal': False, 'scan': True}
  ),
  'sigmoid': make(text={'pooling': 'last', 'causal': False}, **SIGMOID),
}
# It adds the same to all logits of a query, which softmax does not see.
WITHOUT_EFFECT = ('key/bias',)


@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_learns(name):
  model, image, text = MODELS[name], noise(1, 3, 64, 32, 3), texts()
  variables = noisy(model, image, text)
  params = variables.pop('params')

  @jax.jit
  def gradients(params):
    def loss(params):
      (image_features, text_features), out = model.apply(
        {'params': params, **variables}, image, text
      )
      logits = jnp.exp(out['logit_scale']) * image_features @ text_features.T
      logits += out.get('logit_bias', 0)
      return (logits * noise(2, 3, 3)).sum() + jnp.square(logits).sum()

    return jax.grad(loss)(params)

  found = flax.traverse_util.flatten_dict(gradients(params), sep='/')
  assert {'logit_scale', 'text/embedding/embedding'} <= found.keys()
  assert ('logit_bias' in found) == (name == 'sigmoid')
  for path, value in found.items():
    assert np.isfinite(value).all(), path
    if not path.endswith(WITHOUT_EFFECT):
      assert np.abs(value).max() > 1e-6, path


@pytest.mark.parametrize('name', ['vit', 'sigmoid'])
def test_either_side_alone_is_the_same_and_of_unit_length(name):
  model, image, text = MODELS[name], noise(1, 2, 32, 32, 3), texts()
  variables = noisy(model, image, text)
  (images, ids), out = jax.jit(model.apply)(variables, image, text)
  for features, method, side, x in (
    (images, 'encode_image', 'image', image),
    (ids, 'encode_text', 'text', text),
  ):
    alone, inside = jax.jit(model.apply, static_argnames='method')(
      variables, x, method=method
    )
    np.testing.assert_allclose(alone, features, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(alone, axis=1), 1, atol=1e-6)
    assert alone.dtype == jnp.float32
    projected = out[side]['projected']
    np.testing.assert_allclose(inside['projected'], projected, atol=1e-5)


def test_bfloat16_is_near_float32():
  fields = dict(image=VIT, text=TEXT, width=32, **SIGMOID)
  image, text = noise(1, 3, 32, 32, 3), texts()
  model = clip.make(**fields)
  variables = noisy(model, image, text)
  low = clip.make(**fields, dtype=jnp.bfloat16, softmax_dtype=jnp.bfloat16)
  exact, _ = jax.jit(model.apply)(variables, image, text)
  features, out = jax.jit(low.apply)(variables, image, text)
  assert out['text']['encoded'].dtype == jnp.bfloat16
  for ours, expected in zip(features, exact):
    assert ours.dtype == jnp.float32
    assert 1e-5 < np.abs(ours - expected).max() < 0.05


@pytest.mark.parametrize('pooling', ['end', 'last', 'map'])
@pytest.mark.parametrize('causal', [True, False])
def test_what_a_text_is_pooled_from(pooling, causal):
  model = TextTransformer(**TEXT, causal=causal, pooling=pooling)
  text = texts()
  variables = noisy(model, text)
  apply = jax.jit(lambda text: model.apply(variables, text))
  pooled, out = apply(text)
  # Other padding, after the ends at 2, 3 and 4.
  other, other_out = apply(jnp.where(jnp.arange(7) > 4, 5, text))
  change = np.abs(other - pooled).max(axis=1)
  assert (change < 1e-6).all() == (causal and pooling == 'end')
  before = np.abs(other_out['encoded'] - out['encoded'])[:, :5].max()
  assert before < 1e-6 if causal else before > 1e-3
  if pooling != 'map':
    at = [2, 3, 4] if pooling == 'end' else [6, 6, 6]
    np.testing.assert_array_equal(pooled, out['encoded'][jnp.arange(3), at])


def test_an_id_outside_of_the_vocabulary_is_not_a_number():
  model, text = TextTransformer(**TEXT), texts()
  variables = noisy(model, text)
  pooled, _ = jax.jit(model.apply)(variables, text.at[1, 1].set(30))
  assert np.isnan(pooled[1]).all() and np.isfinite(pooled[0]).all()


@pytest.mark.parametrize('cpu', [True, False])
@pytest.mark.parametrize('queries', [7, 3])
def test_causal_attention_sees_the_past_alone(cpu, queries, monkeypatch):
  monkeypatch.setattr(layers, 'on_cpu', lambda: cpu)
  model = attention.Attention(3, causal=True)
  x = noise(0, 2, 7, 24)
  params = model.init(jax.random.key(0), x)
  weight = noise(1, 2, queries, 24)

  def plain(params, x):
    params = params['params']
    query, key, value = (
      jnp.einsum('blw,whd->blhd', x, params[name]['kernel'])
      + params[name]['bias']
      for name in ('query', 'key', 'value')
    )
    logits = jnp.einsum('bqhd,bkhd->bhqk', query[:, :queries], key) / 8**0.5
    mask = np.tri(queries, 7, dtype=bool)
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30))
    out = jnp.einsum('bhqk,bkhd->bqhd', weights, value)
    out = jnp.einsum('bqhd,hdw->bqw', out, params['out']['kernel'])
    return (out + params['out']['bias']) * weight, weights

  def ours(params, x):
    out, found = model.apply(params, x[:, :queries], x)
    return out * weight, found['attention_weights']

  def both(function):
    def total(params, x):
      out, weights = function(params, x)
      return out.sum(), (out, weights)

    return jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    both(ours),
    both(plain),
  )


def test_a_causal_mask_is_not_stored():
  logits = jax.ShapeDtypeStruct((1, 4, 512, 512), jnp.float32)
  assert not jax.make_jaxpr(kernels.hide_future)(logits).consts


def test_scaled_initialisation():
  model = clip.make(
    image={**VIT, 'width': 256, 'depth': 2, 'kernel_init': 'scaled'},
    text={**TEXT, 'width': 256, 'depth': 2, 'mlp_dim': 512, 'num_heads': 4},
    width=64,
  )
  variables = jax.jit(model.init)(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3)), texts()
  )
  flat = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  # Two blocks, so that their output is scaled by (2 * 2)**-0.5.
  wide = 256**-0.5
  expected = {
    'text/embedding/embedding': 0.02,
    'text/position/embedding': 0.01,
    'image/class_token': wide,
    'image/position/embedding': wide,
    'text_projection/kernel': wide,
    'image_projection/kernel': wide,
  }
  for side in ('image', 'text'):
    block = f'{side}/encoder/block_01'
    expected |= {
      f'{block}/attention/query/kernel': wide,
      f'{block}/attention/out/kernel': wide / 2,
      f'{block}/mlp/up/kernel': 512**-0.5,
      f'{block}/mlp/down/kernel': wide / 2,
    }
  for path, deviation in expected.items():
    assert abs(flat[path].std() / deviation - 1) < 0.15, path
  np.testing.assert_allclose(flat['logit_scale'], np.log(1 / 0.07), atol=1e-6)


def test_patch_dropout_keeps_the_class_token_and_a_share_of_patches():
  fields = {k: v for k, v in VIT.items() if k != 'name'}
  image, key = noise(0, 4, 32, 32, 3), jax.random.key(1)
  variables = noisy(ViT(**fields), image)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def apply(rate, train):
    model = ViT(**fields, patch_dropout=rate)
    return model.apply(variables, image, train=train, rngs={'dropout': key})

  np.testing.assert_array_equal(apply(0.75, False)[0], apply(0.0, False)[0])
  whole, kept = apply(0.0, False)[1]['normed'], apply(0.75, True)[1]['normed']
  assert whole.shape == (4, 17, 32) and kept.shape == (4, 5, 32)
  distance = np.abs(kept[:, :, None] - whole[:, None]).max(axis=-1)
  nearest = distance.argmin(axis=-1)
  assert distance.min(axis=-1).max() < 1e-5
  assert (nearest[:, 0] == 0).all()
  assert all(len(set(row)) == 5 for row in nearest.tolist())
  # Each image drops patches of its own.
  assert len({tuple(row) for row in nearest.tolist()}) > 1
  assert patches.drop_patches(whole, 0.99, key).shape == (4, 1, 32)


def test_batch_norm_learns_its_statistics():
  sizes = {k: v for k, v in RESNET.items() if k != 'name'}
  model = modified_resnet.ModifiedResNet(**sizes)
  image = 3 + 2 * noise(1, 4, 32, 32, 3)
  fresh = jax.jit(model.init)(jax.random.key(0), image)
  for path, value in flax.traverse_util.flatten_dict(fresh, sep='/').items():
    if path.endswith('norm_3/scale') and 'stage' in path:
      assert not value.any()  # The branches start at zero.
  variables = noisy(model, image)
  features, changed = jax.jit(
    lambda: model.apply(variables, image, train=True, mutable=['batch_stats'])
  )()
  assert np.isfinite(features[0]).all()
  first = jax.lax.conv_general_dilated(
    image,
    variables['params']['stem']['conv_1']['kernel'],
    (2, 2),
    [(1, 1), (1, 1)],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  old, new = (x['batch_stats']['stem']['norm_1'] for x in (variables, changed))
  for name, value in (('mean', first.mean), ('var', first.var)):
    expected = 0.9 * old[name] + 0.1 * value((0, 1, 2))
    np.testing.assert_allclose(new[name], expected, atol=1e-4)
  # Evaluation reads what was learned, and changes nothing.
  evaluate = jax.jit(lambda variables: model.apply(variables, image)[0])
  before, after = evaluate(variables), evaluate({**variables, **changed})
  assert np.abs(before - after).max() > 1e-3


def test_a_resnet_classifies_by_its_pooled_features():
  sizes = {k: v for k, v in RESNET.items() if k != 'name'}
  model = modified_resnet.ModifiedResNet(**sizes, num_classes=5)
  variables = noisy(model, noise(1, 2, 32, 32, 3))
  logits, found = jax.jit(model.apply)(variables, noise(2, 2, 32, 32, 3))
  head = variables['params']['head']
  expected = found['pooled'] @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert logits.shape == (2, 5)


REFUSED = [
  (lambda: clip.variant('ViT-B/8'), 'Expected one of RN50, RN101'),
  (lambda: make(image={'width': 3}), 'image tower is None, expected one of mi'),
  (lambda: shapes(make(image_head='none', width=16)), 'image_head is .none.'),
  (
    lambda: shapes(make(image={**VIT, 'pooling': 'none'})),
    r'shape \(2, 16, 32\).* give the tower a pooling',
  ),
  (
    lambda: shapes(make(text={'length': 9})),
    r'\(2, 7\), expected \[batch, 9\]',
  ),
  (lambda: shapes(make(text={'num_heads': 5})), '24 cannot be shared by 5'),
  (lambda: shapes(make(text={'dropout': 1.0})), 'dropout is 1.0, expected'),
  (lambda: shapes(make(text={'depth': 0})), 'depth is 0, expected 1 or more'),
  (lambda: shapes(make(initial_scale=0.0)), 'initial_scale 0.0, expected'),
  (
    lambda: shapes(make(image={**VIT, 'patch_dropout': 1.0})),
    'patch_dropout is 1.0, expected a rate',
  ),
  (
    lambda: shapes(
      make(image={**VIT, 'patch_dropout': 0.5, 'position_at': 'shared'})
    ),
    'told positions need all patches',
  ),
  (lambda: shapes(make(image=RESNET), 40), '32 pixels apart.* 40x40'),
  (lambda: resnet(stages=(1, 1)), r'are \(1, 1\), expected .* each of four'),
  (lambda: resnet(width=5), 'width is 5, expected an even number'),
  (lambda: resnet(num_heads=5), '128 channels cannot be shared by 5'),
]


def shapes(model, size=32):
  image = jnp.zeros((2, size, size, 3))
  return jax.eval_shape(model.init, jax.random.key(0), image, texts(2))


def resnet(**fields):
  sizes = {k: v for k, v in RESNET.items() if k != 'name'}
  model = modified_resnet.ModifiedResNet(**{**sizes, **fields})
  jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize('make,message', REFUSED)
def test_what_cannot_be_is_refused_with_what_to_do(make, message):
  with pytest.raises(ValueError, match=message):
    make()
