"""The Vision Transformer: its size, its function, its switches."""

import json
import pathlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import layers, position, transformer, vit

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)

# Fields, image size, classes, parameters: computed from the released files.
COUNTS = [
  ('Ti/16', {}, 224, 1000, 5_717_416),
  ('Ti/16', {}, 384, 1000, 5_790_376),
  ('Ti/16', {}, 224, 21843, 9_740_115),
  ('Ti/16', {}, 224, 0, 5_524_416),
  ('S/32', {}, 224, 1000, 22_878_952),
  ('S/32', {}, 384, 1000, 22_915_432),
  ('S/16', {}, 224, 1000, 22_050_664),
  ('S/16', {}, 384, 1000, 22_196_584),
  ('B/32', {}, 224, 1000, 88_224_232),
  ('B/32', {}, 384, 1000, 88_297_192),
  ('B/16', {}, 224, 1000, 86_567_656),
  ('B/16', {}, 384, 1000, 86_859_496),
  ('B/16', {}, 224, 21843, 102_595_923),
  ('B/16', {'representation_size': -1}, 224, 21843, 103_186_515),
  ('B/8', {}, 224, 1000, 86_576_872),
  ('B/8', {}, 384, 1000, 87_744_232),
  ('L/32', {}, 224, 1000, 306_535_400),
  ('L/32', {}, 384, 1000, 306_632_680),
  ('L/16', {}, 224, 1000, 304_326_632),
  ('L/16', {}, 384, 1000, 304_715_752),
  ('L/16', {}, 224, 21843, 325_690_707),
  ('H/14', {}, 224, 1000, 632_045_800),
  ('H/14', {}, 518, 1000, 633_470_440),
  ('H/14', {}, 224, 21843, 658_745_683),
  ('Ti/16', {'pooling': 'gap'}, 224, 1000, 5_717_032),
  ('S/16', {'pooling': 'gap'}, 224, 1000, 22_049_896),
  ('B/16', {'pooling': 'gap'}, 224, 1000, 86_566_120),
  ('L/16', {'pooling': 'gap'}, 224, 1000, 304_324_584),
  ('H/14', {'pooling': 'gap'}, 224, 1000, 632_043_240),
  ('So400m/14', {'pooling': 'gap'}, 224, 1000, 413_595_352),
  ('g/14', {'pooling': 'gap'}, 224, 1000, 1_012_608_616),
  ('G/14', {'pooling': 'gap'}, 224, 1000, 1_844_437_352),
  ('e/14', {'pooling': 'gap'}, 224, 1000, 3_807_210_728),
  ('B/16', {'pooling': 'map'}, 224, 1000, 93_653_224),
  ('g/14', {'pooling': 'map'}, 224, 1000, 1_037_857_384),
  ('G/14', {'pooling': 'map'}, 224, 1000, 1_882_797_416),
  (
    'S/16',
    {'pooling': 'gap', 'position': 'sincos_2d', 'representation_size': -1},
    224,
    1000,
    22_122_472,
  ),
]


def shapes(model, size=32, channels=3):
  image = jnp.zeros((2, *np.broadcast_to(size, 2), channels))
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


def small(**fields):
  sizes = dict(patch_size=8, width=32, depth=3, mlp_dim=48, num_heads=4)
  return vit.ViT(**{'num_classes': 5, **sizes, **fields})


def noisy(params, seed=0):
  """Puts noise on every tensor, so that nothing cancels."""
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)

  def draw(x):
    return np.asarray(rng.normal(size=x.shape) * 0.2, np.float32)

  return jax.tree.unflatten(tree, [leaf + draw(leaf) for leaf in leaves])


def image(rows=32, columns=32, batch=3, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(batch, rows, columns, 3)), jnp.float32)


def initialised(model, x):
  return noisy(jax.jit(model.init)(jax.random.key(0), x)['params'])


@pytest.mark.parametrize('variant,fields,size,classes,count', COUNTS)
def test_parameter_counts(variant, fields, size, classes, count):
  model = vit.ViT(num_classes=classes, variant=variant, **fields)
  assert vit.count_parameters(shapes(model, size)) == count


# Names of the released files, in those of this package.
RELEASED = {
  'Transformer/posembed_input/pos_embedding': 'position/embedding',
  'pos_embedding': 'position/embedding',
  'cls': 'class_token',
  'Transformer/encoder_norm': 'encoder/norm',
  'MlpBlock_3/Dense_0': 'mlp/up',
  'MlpBlock_3/Dense_1': 'mlp/down',
  'LayerNorm_0': 'attention_norm',
  'LayerNorm_2': 'mlp_norm',
  'MultiHeadDotProductAttention_1': 'attention',
}


def from_released(name):
  for theirs, ours in RELEASED.items():
    name = name.replace(theirs, ours)
  for i in range(9, -1, -1):
    name = name.replace(
      f'Transformer/encoderblock_{i}/', f'encoder/block_{i:02d}/'
    )
  return name


@pytest.mark.parametrize('name', ['vit_token', 'vit_token_norep'])
@pytest.mark.parametrize('cpu', [True, False])
def test_computes_what_the_released_model_computes(name, cpu, monkeypatch):
  # Both orders of computing, whatever this runs on.
  monkeypatch.setattr(layers, 'on_cpu', lambda: cpu)
  golden = np.load(GOLDENS / f'{name}.npz')
  sizes = json.loads(str(golden['meta']))['hyperparameters']
  params = {
    from_released(key.removeprefix('params/')): golden[key]
    for key in golden.files
    if key.startswith('params/')
  }
  params = flax.traverse_util.unflatten_dict(params, sep='/')
  model = vit.ViT(
    num_classes=sizes['num_classes'],
    patch_size=sizes['patch_size'][0],
    width=sizes['hidden_size'],
    depth=sizes['num_layers'],
    mlp_dim=sizes['mlp_dim'],
    num_heads=sizes['num_heads'],
    representation_size=sizes['representation_size'] or 0,
  )
  logits, out = jax.jit(model.apply)({'params': params}, golden['input/image'])
  ours = {
    'with_posemb': out['tokens'],
    'block0': out['blocks']['block_00']['output'],
    'encoded': out['encoded'],
    'logits': logits,
  }
  for key, value in ours.items():
    np.testing.assert_allclose(
      value, golden[f'output/{key}'], atol=1e-4, rtol=0
    )


POSITIONS = [
  ('none', 'stem', {}),
  ('learned', 'stem', {'position/embedding': (1, 17, 32)}),
  ('learned', 'shared', {'encoder/position/embedding': (1, 17, 32)}),
  (
    'learned',
    'every_layer',
    {f'encoder/block_0{i}/position/embedding': (1, 17, 32) for i in range(3)},
  ),
  ('learned_2d', 'stem', {'position/row': (4, 16), 'position/column': (4, 16)}),
  ('sincos_2d', 'stem', {}),
  ('relative', 'shared', {'encoder/offsets': (33, 8)}),
  (
    'relative',
    'every_layer',
    {f'encoder/block_0{i}/offsets': (33, 8) for i in range(3)},
  ),
]


@pytest.mark.parametrize('kind,at,expected', POSITIONS)
def test_position_embeddings_see_order_and_only_they(kind, at, expected):
  model = small(position=kind, position_at=at)
  x = image()
  params = initialised(model, x)
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  ours = {
    name: value.shape
    for name, value in flat.items()
    if 'position' in name or 'offsets' in name
  }
  assert ours == expected
  apply = jax.jit(lambda x: model.apply({'params': params}, x)[0])
  # The upper and the lower half of each image change places.
  swapped = jnp.concatenate([x[:, 16:], x[:, :16]], axis=1)
  change = np.abs(apply(x) - apply(swapped)).max()
  assert change < 1e-4 if kind == 'none' else change > 1e-2


def test_learned_2d_and_sincos_2d_tell_row_and_column():
  x = jnp.zeros((1, 6, 8))
  table = position.SinCos2d((2, 3)).apply({}, x).reshape(2, 3, 8)
  # x is the column and comes first: sin, cos; then y.
  frequencies = np.array([1, 1e-4])
  for row in range(2):
    for column in range(3):
      expected = [
        *np.sin(column * frequencies),
        *np.cos(column * frequencies),
        *np.sin(row * frequencies),
        *np.cos(row * frequencies),
      ]
      np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
  params = {
    'row': jnp.arange(8.0).reshape(2, 4),
    'column': 100 + jnp.arange(12.0).reshape(3, 4),
  }
  table = position.Learned2d((2, 3)).apply(
    {'params': params}, jnp.zeros((1, 7, 8))
  )
  assert not table[0, 0].any()  # The class token.
  np.testing.assert_array_equal(
    table[0, 1 + 1 * 3 + 2], [4, 5, 6, 7, 108, 109, 110, 111]
  )


@pytest.mark.parametrize(
  'pooling,at', [('token', 'stem'), ('map', 'every_layer'), ('none', 'shared')]
)
def test_scan_and_remat_change_nothing(pooling, at):
  x = image(32, 48)
  fields = dict(pooling=pooling, position_at=at, depth=2)
  params = initialised(small(**fields), x)
  stacked = dict(params, encoder=dict(params['encoder']))
  blocks = [stacked['encoder'].pop(f'block_0{i}') for i in range(2)]
  stacked['encoder']['blocks'] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)

  def result(params, **switches):
    model = small(**fields, **switches)

    def loss(params):
      logits = model.apply({'params': params}, x)[0]
      return jnp.square(logits).sum(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  (_, logits), gradients = result(params)
  (_, same), remat_gradients = result(params, remat='names')
  np.testing.assert_allclose(same, logits, atol=1e-5)
  (_, same), scan_gradients = result(stacked, scan=True)
  np.testing.assert_allclose(same, logits, atol=1e-5)
  (_, same), both_gradients = result(stacked, scan=True, remat='full')
  np.testing.assert_allclose(same, logits, atol=1e-5)
  own = scan_gradients['encoder'].pop('blocks')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-4),
    own,
    both_gradients['encoder']['blocks'],
  )
  for i in range(2):
    own_block = jax.tree.map(lambda x, i=i: x[i], own)
    scan_gradients['encoder'][f'block_0{i}'] = own_block
  for other in (remat_gradients, scan_gradients):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-4),
      other,
      gradients,
    )


class BareBlock(transformer.Block):
  """A block that gives no intermediates."""

  @nn.compact
  def __call__(self, x, drop_rate, shared, first=None):
    return super().__call__(x, drop_rate, shared, first)[0], {}


@pytest.mark.parametrize('scan', [False, True])
def test_unused_intermediates_cost_nothing(scan, monkeypatch):
  model = small(scan=scan)
  x = image()
  params = initialised(model, x)

  def cost():
    def loss(params):
      return jnp.square(model.apply({'params': params}, x)[0]).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()['flops'], memory.temp_size_in_bytes

  flops, memory = cost()
  monkeypatch.setattr(transformer, 'Block', BareBlock)
  bare_flops, bare_memory = cost()
  assert flops == bare_flops
  assert memory <= 1.02 * bare_memory


def test_attention_weights_are_those_that_were_used():
  model = small(depth=1)
  x = image()
  params = initialised(model, x)
  _, out = jax.jit(model.apply)({'params': params}, x)
  block = out['blocks']['block_00']
  p = params['encoder']['block_00']
  tokens = np.asarray(out['tokens'], np.float64)
  normed = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(
    tokens.var(-1, keepdims=True) + 1e-6
  )
  normed = normed * p['attention_norm']['scale'] + p['attention_norm']['bias']

  def project(n):
    return (
      np.einsum('bld,dhk->blhk', normed, p['attention'][n]['kernel'])
      + p['attention'][n]['bias']
    )

  query, key, value = map(project, ('query', 'key', 'value'))
  weights = np.exp(np.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(8))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(block['attention_weights'], weights, atol=1e-5)
  attended = np.einsum('bhqk,bkhd->bqhd', weights, value)
  attended = np.einsum(
    'bqhd,hdw->bqw', attended, p['attention']['out']['kernel']
  )
  attended += p['attention']['out']['bias']
  np.testing.assert_allclose(block['attention'], attended, atol=1e-4)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
  x = image()
  model = small(dtype=jnp.bfloat16, softmax_dtype=jnp.bfloat16)
  params = initialised(model, x)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.float32.dtype}
  logits, out = jax.jit(model.apply)({'params': params}, x)
  assert out['encoded'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  exact, _ = jax.jit(small().apply)({'params': params}, x)
  error = np.abs(logits - exact).max()
  assert 1e-5 < error < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
  'field', ['dropout', 'attention_dropout', 'stochastic_depth']
)
@pytest.mark.parametrize('scan', [False, True])
def test_regularisation_acts_in_training_only(field, scan):
  model = small(**{field: 0.4}, scan=scan, depth=2)
  x = image()
  params = initialised(small(scan=scan, depth=2), x)
  apply = jax.jit(
    lambda key, train: model.apply(
      {'params': params}, x, train=train, rngs={'dropout': key}
    )[0],
    static_argnums=1,
  )
  first, second = (jax.random.key(seed, impl='rbg') for seed in (0, 1))
  plain = jax.jit(small(scan=scan, depth=2).apply)({'params': params}, x)[0]
  np.testing.assert_allclose(apply(first, False), plain, atol=1e-5)
  np.testing.assert_array_equal(apply(first, True), apply(first, True))
  assert np.abs(apply(first, True) - apply(second, True)).max() > 1e-3


@pytest.mark.parametrize('field', ['dropout', 'stochastic_depth'])
def test_what_is_dropped_is_dropped_once_and_the_rest_scaled_up(field):
  # The last block's rate of stochastic depth is the whole rate.
  model = small(depth=2, **{field: 0.5})
  x = image(batch=64)
  params = initialised(small(depth=2), x)
  _, out = jax.jit(
    lambda key: model.apply(
      {'params': params}, x, train=True, rngs={'dropout': key}
    )
  )(jax.random.key(0, impl='rbg'))
  block = out['blocks'][max(out['blocks'])]
  added = (block['output'] - block['after_attention']) / block['mlp']
  dropped = np.abs(added) < 0.01
  assert (dropped | (np.abs(added - 2) < 0.01)).mean() > 0.99
  assert abs(dropped.mean() - 0.5) < 0.2


@pytest.mark.parametrize('pooling', ['token', 'gap'])
def test_patch_embeddings_can_be_corrupted_before_positions_join(pooling):
  model = small(pooling=pooling, depth=1)
  x = image()
  params = initialised(model, x)

  @jax.jit
  def tokens(factor):
    _, out = model.apply(
      {'params': params}, x, corrupt=lambda patches: factor * patches
    )
    return out['patches'].reshape(3, 16, 32), out['tokens']

  patches, plain = tokens(1.0)
  same, doubled = tokens(2.0)
  np.testing.assert_array_equal(same, patches)
  np.testing.assert_allclose(
    doubled[:, -16:] - plain[:, -16:], patches, atol=1e-5
  )
  # The class token has no patch.
  np.testing.assert_array_equal(doubled[:, :-16], plain[:, :-16])
  _, out = jax.jit(model.apply)({'params': params}, x)
  np.testing.assert_allclose(out['tokens'], plain, atol=1e-5)


def test_input_that_does_not_fit_is_refused_with_what_to_do():
  with pytest.raises(ValueError, match='8x8 pixels do not divide .* 30x32'):
    shapes(small(), (30, 32))
  with pytest.raises(ValueError, match='B/16; sizes: mu, Ti, S'):
    shapes(vit.ViT(variant='X/16'))
  with pytest.raises(ValueError, match="position_at to 'every_layer'"):
    shapes(small(position='relative'))
  with pytest.raises(ValueError, match='must be a multiple'):
    shapes(small(num_heads=5))
  with pytest.raises(ValueError, match='give variant, .*depth'):
    shapes(vit.ViT(patch_size=8, width=32))
