"""The paper's other models: their sizes, how they learn, what they refuse."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.models import resnet
from vit_jax.models.mixer import Mixer
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT, count_parameters

# Variant; parameters at 224 and 1000 classes, 384 and 1000, 224 and 21843, and
# 224 without head: computed from the released files.
HYBRID_COUNTS = {
  'R+Ti/16': (6_337_704, 6_355_944, 10_360_403, 6_144_704),
  'R26+S/32': (36_431_912, 36_468_392, 44_456_467, 36_046_912),
  'R26+B/32': (101_383_976, 101_456_936, 117_412_243, 100_614_976),
  'R50+B/16': (98_659_112, 98_950_952, 114_687_379, 97_890_112),
  'R50+L/32': (328_994_856, 329_092_136, 350_358_931, 327_969_856),
}
COUNTS = [
  (ViT, variant, size, classes, count)
  for variant, counts in HYBRID_COUNTS.items()
  for size, classes, count in zip(
    (224, 384, 224, 224), (1000, 1000, 21843, 0), counts
  )
] + [
  (Mixer, 'B/16', 224, 1000, 59_880_472),
  (Mixer, 'B/32', 224, 1000, 60_293_428),
  (Mixer, 'L/16', 224, 1000, 208_196_168),
  (ResNet, 'R50x1', 224, 1000, 25_549_352),
  (ResNet, 'R101x3', 224, 1000, 387_934_888),
  (ResNet, 'R152x2', 224, 1000, 236_335_208),
  (ResNet, 'R152x4', 224, 1000, 936_533_224),
]


def shapes(model, size):
  image = jax.ShapeDtypeStruct((1, *np.broadcast_to(size, 2), 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)['params']


@pytest.mark.parametrize('model,variant,size,classes,count', COUNTS)
def test_parameter_counts(model, variant, size, classes, count):
  made = model(num_classes=classes, variant=variant)
  assert count_parameters(shapes(made, size)) == count


# For the other hybrids the counts at two sizes say it.
@pytest.mark.parametrize(
  'variant,tokens',
  [
    ('R50+L/16', (197, 577)),
    ('R50+B/32', (50, 145)),
    # 32 pixels apart in spite of its name.
    ('R+Ti/16', (50, 145)),
  ],
)
def test_tokens_of_hybrids(variant, tokens):
  for size, expected in zip((224, 384), tokens):
    position = shapes(ViT(variant=variant), size)['position']['embedding']
    assert position.shape[1] == expected


TINY = {
  'hybrid': ViT(
    num_classes=5,
    patch_size=1,
    width=32,
    depth=1,
    mlp_dim=48,
    num_heads=2,
    backbone_stages=(2, 1),
    backbone_width_factor=0.5,
  ),
  'stem hybrid': ViT(
    num_classes=5,
    patch_size=8,
    width=32,
    depth=1,
    mlp_dim=48,
    num_heads=2,
    backbone_stages=(),
    backbone_width_factor=0.5,
  ),
  'post-activation ResNet': ResNet(
    num_classes=5, stages=(2, 1), width_factor=0.5, form='post_activation'
  ),
  'pre-activation ResNet': ResNet(
    num_classes=5, stages=(2, 1), width_factor=0.5, form='pre_activation'
  ),
  'Mixer': Mixer(
    num_classes=5,
    patch_size=16,
    width=32,
    depth=2,
    token_mlp_dim=24,
    channel_mlp_dim=48,
  ),
}


def noise(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def noisy(model, image):
  """Returns parameters with noise on every tensor, so that nothing cancels."""
  params = jax.jit(model.init)(jax.random.key(0), image)['params']
  leaves, tree = jax.tree.flatten(params)
  return jax.tree.unflatten(
    tree, [x + 0.2 * noise(i, *x.shape) for i, x in enumerate(leaves)]
  )


@pytest.mark.parametrize('form', ['post_activation', 'pre_activation'])
def test_only_post_activation_branches_start_at_zero(form):
  model = TINY[f'{form.replace("_a", "-a")} ResNet']
  params = jax.jit(model.init)(jax.random.key(0), noise(0, 1, 32, 32, 3))
  flat = flax.traverse_util.flatten_dict(params['params'], sep='/')
  for path, value in flat.items():
    if path.endswith('scale'):
      zero = form == 'post_activation' and 'norm_3' in path
      np.testing.assert_array_equal(value, 0 if zero else 1)
  assert not flat['head/kernel'].any()


# One adds the same to all logits of a query, which softmax does not see; the
# other the same to all channels of a token, which no norm lets through.
WITHOUT_EFFECT = ('key/bias', 'token_mlp/down/bias')


@pytest.mark.parametrize('name', TINY)
def test_every_parameter_learns(name):
  model, image = TINY[name], noise(0, 3, 64, 32, 3)
  params = noisy(model, image)
  labels = jnp.array([0, 2, 4])

  @jax.jit
  def gradient(params):
    def loss(params):
      logits, _ = model.apply({'params': params}, image, train=True)
      return -nn.log_softmax(logits)[jnp.arange(3), labels].mean()

    return jax.grad(loss)(params)

  gradients = flax.traverse_util.flatten_dict(gradient(params), sep='/')
  for path, value in gradients.items():
    assert np.isfinite(value).all(), path
    if path.endswith(WITHOUT_EFFECT):
      continue
    assert np.abs(value).max() > 1e-6, path


@pytest.mark.parametrize('name', TINY)
def test_bfloat16_is_near_float32(name):
  model, image = TINY[name], noise(1, 3, 64, 32, 3)
  params = noisy(model, image)
  low = model.clone(dtype=jnp.bfloat16)
  logits, out = jax.jit(low.apply)({'params': params}, image)
  assert out['pooled'].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32
  exact, _ = jax.jit(model.apply)({'params': params}, image)
  error = np.abs(logits - exact).max()
  assert 1e-5 < error < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
  'dtype,mean,atol',
  # The largest results are about 15, which bfloat16 rounds by up to 0.03.
  [(jnp.float32, 1000, 1e-3), (jnp.bfloat16, 30, 0.04)],
)
def test_group_norm_has_statistics_in_float32(dtype, mean, atol):
  x = jnp.asarray(mean + noise(2, 2, 8, 8, 64), dtype)
  params = {'scale': 1 + noise(3, 64), 'bias': noise(4, 64)}
  groups = np.asarray(x, np.float64).reshape(2, 8, 8, 32, 2)
  axes = (1, 2, 4)
  normed = groups - groups.mean(axes, keepdims=True)
  normed /= np.sqrt(groups.var(axes, keepdims=True) + 1e-6)
  expected = normed.reshape(x.shape) * params['scale'] + params['bias']
  out = jax.jit(resnet.GroupNorm(1e-6).apply)({'params': params}, x)
  assert out.dtype == dtype
  np.testing.assert_allclose(
    np.asarray(out, np.float64), expected, atol=atol, rtol=0
  )


def test_mixer_skips_whole_branches_in_training_only():
  model, image = TINY['Mixer'], noise(0, 3, 64, 32, 3)
  params = noisy(model, image)
  dropping = model.clone(stochastic_depth=0.5)
  apply = jax.jit(
    lambda train, key: dropping.apply(
      {'params': params}, image, train=train, rngs={'dropout': key}
    ),
    static_argnums=0,
  )
  plain, _ = jax.jit(model.apply)({'params': params}, image)
  np.testing.assert_allclose(
    apply(False, jax.random.key(0))[0], plain, atol=1e-5
  )
  # Half of the examples skip, and the last block's rate is the whole rate.
  added = []
  for seed in range(8):
    blocks = apply(True, jax.random.key(seed, impl='rbg'))[1]['blocks']
    last = blocks['block_01']
    added.append(np.abs(last['output'] - last['after_token_mixing']))
  skipped = (np.stack(added).max(axis=(2, 3)) == 0).mean()
  assert 0.2 < skipped < 0.8


REFUSED = [
  (ViT(variant='R50+B/16'), (224, 200), '16 pixels apart.* 224x200.*of 16'),
  (ViT(variant='R+Ti/16'), 208, '32 pixels apart.* 208x208.*of 32'),
  (ViT(variant='R50+B/8'), 224, "'R50.B/8' is not a hybrid.*R50/16, R50/32"),
  (ViT(variant='R50+X/16'), 224, 'sizes: mu, Ti, S'),
  (ResNet(variant='R34x1'), 224, 'such as R50x1; layers: 26, 50'),
  (ResNet(stages=(1, 1)), 224, 'ResNet is not known.*width_factor'),
  (ResNet(variant='R26x1', width_factor=0.3), 224, '19.2 channels.*of 0.5'),
  (ResNet(stages=(1, 0), width_factor=1.0), 224, 'are .1, 0., expected'),
  (Mixer(variant='X/16'), 224, 'not a Mixer variant.*sizes: S, B, L, H'),
  (Mixer(variant='B/16', depth=0), 224, 'depth is 0, expected 1 or more'),
  (Mixer(variant='B/16', stochastic_depth=1.0), 224, 'is 1.0, expected a rate'),
]


@pytest.mark.parametrize('model,size,message', REFUSED)
def test_what_cannot_be_is_refused_with_what_to_do(model, size, message):
  with pytest.raises(ValueError, match=message):
    shapes(model, size)
