"""Likelihoods, schedules, losses and pictures of the discrete VAE."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.models.discrete_vae import DiscreteVae as Model
from vit_jax.models.discrete_vae import map_pixels
from vit_jax.tasks import discrete_vae, ramp
from vit_jax.tasks.discrete_vae import DiscreteVae
from vit_jax.training import watch

KEY = jax.random.key(0)


def to_steps(duration):
  return {'100steps': 100, '10%': 20, '50%': 50}[duration]


@pytest.mark.parametrize(
  'text,values',
  [
    ('6.6', [6.6] * 5),
    ('1/4', [0.25] * 5),
    ('1 -> 1/16 over 100steps', [1, 0.863, 0.531, 0.0625, 0.0625]),
    ('0 -> 6.6 over 100steps linear', [0, 1.65, 3.3, 6.6, 6.6]),
    ('1 -> 1/16 over 100steps exponential', [1, 0.5, 0.25, 0.0625, 0.0625]),
    ('0->2 over 10%', [0, 2, 2, 2, 2]),
  ],
)
def test_values_change_as_they_are_written(text, values):
  read = ramp.parse(text, 'x')
  steps = [0, 25, 50, 100, 1000]
  found = [float(read.at(jnp.int32(step), to_steps)) for step in steps]
  np.testing.assert_allclose(found, values, atol=1e-3)


@pytest.mark.parametrize(
  'text,message',
  [
    ('1 -> 0.1', 'expected a number such as'),
    ('1 -> 0.1 over 100', 'expected a number such as'),
    ('1 -> 0.1 over 5% cubic', 'kinds: cosine, linear, exponential'),
    ('1/0', 'expected a number such as'),
    ('', 'expected a number such as'),
    ('1 -> 0 over 5% exponential', 'above 0 at both ends'),
  ],
)
def test_what_is_no_value_is_refused(text, message):
  with pytest.raises(ConfigError, match=f'config.task.kl_weight.*{message}'):
    DiscreteVae(Model(), (8, 8, 3), kl_weight=text)


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(temperature='0'), "temperature is '0', expected more than 0"),
    (dict(temperature='-1'), "temperature is '-1', expected more than 0"),
    (dict(temperature='1 -> 0 over 10% linear'), 'more than 0 at both ends'),
    (dict(temperature='0 -> 1 over 10%'), 'more than 0 at both ends'),
    (dict(kl_weight='-1'), "kl_weight is '-1', expected 0 or more"),
    (dict(evenness='1 -> -1 over 5%'), 'evenness.*expected 0 or more at both'),
    (dict(deviation=0.0), 'deviation is 0.0, expected more'),
    (dict(commitment=-1.0), 'commitment is -1.0, expected 0 or more'),
    (dict(commitment=0.5), "0.5, which quantization='gumbel' has no use for"),
    (
      dict(model=Model(quantization='vector'), kl_weight='1'),
      "'1', which quantization='vector' has no use for: leave it out",
    ),
    (dict(deviation=0.2), "likelihood='logit_laplace' has no use for"),
    (dict(model=nn.Dense(3)), "with the name 'discrete_vae'"),
  ],
)
def test_impossible_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    DiscreteVae(**{'model': Model(), 'image_shape': (8, 8, 3), **fields})


@pytest.mark.parametrize('likelihood', ['logit_laplace', 'logit_normal'])
def test_likelihoods_are_densities_of_pixels(likelihood):
  # Of what lies between 0 and 1, all probability is counted once.
  pixels = jnp.linspace(0, 1, 200_001)[1:-1, None]
  statistics = jnp.broadcast_to(jnp.array([0.4, -0.7]), (len(pixels), 2))
  if likelihood == 'logit_laplace':
    surprise = discrete_vae.logit_laplace(pixels, statistics)
  else:
    surprise = discrete_vae.logit_normal(pixels, statistics, 0.5)
  density = np.exp(-surprise[:, 0])
  np.testing.assert_allclose(density.mean(), 1, atol=1e-3)
  # The location is the median.
  middle = 1 / (1 + np.exp(-0.4))
  below = density[pixels[:, 0] < middle].sum() / density.sum()
  np.testing.assert_allclose(below, 0.5, atol=1e-3)


def test_logit_laplace_is_the_formula_of_the_paper():
  x, mu, b = 0.3, 0.4, 0.5
  statistics = jnp.array([mu, np.log(b)])
  found = discrete_vae.logit_laplace(jnp.array([x]), statistics)[0]
  logit = np.log(x / (1 - x))
  density = np.exp(-abs(logit - mu) / b) / (2 * b * x * (1 - x))
  np.testing.assert_allclose(found, -np.log(density), atol=1e-5)


class Given(Model):
  """Says that every image has the same logits and statistics."""

  logits: tuple = ()
  statistics: tuple = ()

  @nn.compact
  def __call__(self, image, train=False, temperature=None):
    logits = jnp.asarray(self.logits, jnp.float32)
    logits = jnp.broadcast_to(logits, (len(image), *logits.shape))
    statistics = jnp.asarray(self.statistics, jnp.float32)
    shape = (*image.shape[:-1], len(self.statistics))
    out = {'logits': logits, 'codes': logits.argmax(-1)}
    return jnp.broadcast_to(statistics, shape), out


# One row of two codes of four, for images of 2x4 pixels.
LOGITS = (((0.0, 2.0, 0.0, -1.0), (1.0, 0.0, 0.0, 0.0)),)
STATISTICS = (0.3, -0.2)
IMAGE = np.random.default_rng(0).random((3, 2, 4, 1)).astype(np.float32)


def given(**fields):
  return DiscreteVae(
    Given(vocabulary_size=4, logits=LOGITS, statistics=STATISTICS),
    (2, 4, 1), to_steps,
    temperature='1 -> 0.5 over 100steps', kl_weight='0 -> 6.6 over 100steps',
    **fields,
  )  # fmt: skip


def kl():
  """Returns the KL divergence to the uniform prior at both positions."""
  share = np.exp(LOGITS[0])
  share = share / share.sum(-1, keepdims=True)
  return (share * np.log(share * 4)).sum(-1)


def test_the_loss_is_the_evidence_lower_bound_for_each_value():
  location, log_scale = STATISTICS
  x = np.asarray(map_pixels(IMAGE), np.float64)
  distance = np.abs(np.log(x / (1 - x)) - location) / np.exp(log_scale)
  surprise = distance + log_scale + np.log(2 * x * (1 - x))
  loss, metrics, others = given().loss({}, {'image': IMAGE}, KEY, 50)
  np.testing.assert_allclose(
    loss, surprise.mean() + 3.3 * kl().sum() / 8, atol=1e-5
  )
  np.testing.assert_allclose(metrics['kl'], kl().mean(), atol=1e-5)
  np.testing.assert_allclose(metrics['temperature'], 0.75, atol=1e-6)
  assert others == {}
  # Evaluation has no weight, and is of each example.
  each = given().metrics({}, {'image': IMAGE})
  expected = surprise.mean((1, 2, 3)) + kl().sum() / 8
  np.testing.assert_allclose(each['loss'], expected, atol=1e-5)
  middle = (1 / (1 + np.exp(-location)) - 0.1) / 0.8
  error = np.square(IMAGE - middle).mean((1, 2, 3))
  np.testing.assert_allclose(each['squared_error'], error, atol=1e-5)


def test_usage_is_of_the_examples_that_count():
  task = given()
  codes = jnp.array([[[0, 0]], [[0, 1]], [[2, 3]]])
  usage = task._usage(codes, jnp.array([1.0, 1.0, 0.0]))
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  np.testing.assert_allclose(
    usage['perplexity_of_codes'], np.exp(entropy), atol=1e-5
  )
  np.testing.assert_allclose(usage['codes_used'], 0.5, atol=1e-6)


def small(**fields):
  model = Model(
    width=8, blocks_per_group=1, groups=2, vocabulary_size=16, code_width=8,
    stem_size=3, patch_size=2, **fields,
  )  # fmt: skip
  own = {'temperature': '1', 'kl_weight': '1'}
  if model.quantization == 'vector':
    own = {}
  return DiscreteVae(model, (8, 8, 3), to_steps, **own)


@pytest.mark.parametrize('quantization', ['gumbel', 'vector'])
def test_every_parameter_learns(quantization):
  task = small(quantization=quantization)
  batch = {'image': jax.random.uniform(KEY, (4, 8, 8, 3))}
  params = task.init(KEY)['params']

  @jax.jit
  def loss(params, key=KEY):
    return task.loss({'params': params}, batch, key, 3)[0]

  gradients = jax.jit(jax.grad(loss))(params)
  for path, gradient in jax.tree.leaves_with_path(gradients):
    assert np.abs(gradient).max() > 0, path
  # Only the relaxation is random.
  same = loss(params) == loss(params, jax.random.key(1))
  assert same == (quantization == 'vector')


def test_codes_that_nothing_chooses_are_drawn_to_vectors():
  task = small(quantization='vector')
  even = np.eye(16, dtype=np.float32)
  np.testing.assert_allclose(task._unevenness(even), 0, atol=1e-6)
  same = np.tile(even[:1], (16, 1))
  # Fifteen codes with a share of exp(-1 / 0.03), in place of a 16th.
  far = 15 / 16 / 0.03 - np.log(16)
  np.testing.assert_allclose(task._unevenness(same), far, rtol=1e-6)
  # What is as its code says has its due, however much of it there is.
  mixed = np.concatenate([same, same, even / 2])
  np.testing.assert_allclose(task._unevenness(mixed), 0, atol=1e-3)
  batch = {'image': jax.random.uniform(KEY, (4, 8, 8, 3))}
  params = task.init(KEY)['params']

  @jax.jit
  def gradient(params):
    def loss(params):
      return task.loss({'params': params}, batch, KEY, 3)[0]

    return jax.grad(loss)(params)['codebook']['kernel']

  codes = task.encode({'params': params}, batch['image'])
  unchosen = np.setdiff1d(np.arange(16), codes)
  assert len(unchosen)
  sizes = np.linalg.norm(gradient(params)[unchosen], axis=-1)
  assert sizes.min() > 0.1 * sizes.max() > 1e-4


@pytest.mark.parametrize(
  'quantization,name', [('gumbel', 'kl_weight'), ('vector', 'evenness')]
)
def test_a_collapse_is_told(quantization, name):
  task = small(quantization=quantization)
  assert task.warning({'codes_used': 8 / 16}) == ''
  told = task.warning({'codes_used': 7 / 16})
  assert told.startswith('collapsed: a batch uses 7 of 16 codes. Try a higher')
  assert f'config.task.{name}' in told


def test_codes_can_be_kept_and_decoded_later():
  task = small()
  variables = task.init(KEY)
  image = jax.random.uniform(KEY, (4, 8, 8, 3))
  codes = task.encode(variables, image)
  assert (codes.shape, codes.dtype) == ((4, 2, 2), jnp.int32)
  made = task.decode(variables, codes)
  assert made.shape == image.shape
  assert 0 <= made.min() <= made.max() <= 1
  error = task.metrics(variables, {'image': image})['absolute_error']
  expected = np.abs(made - image).mean((1, 2, 3))
  np.testing.assert_allclose(error, expected, atol=1e-5)


def test_pictures_are_of_the_images_that_count():
  task = small()
  variables = task.init(KEY)
  image = jax.random.uniform(KEY, (4, 8, 8, 3))
  batches = [{'image': image, 'mask': jnp.array([1.0, 1.0, 1.0, 0.0])}] * 2
  pictures = dict(task.pictures(variables, batches))
  assert list(pictures) == ['reconstructions', 'codes_used']
  assert task.sheets == ('reconstructions',)
  sheet = [axes.get_images() for axes in pictures['reconstructions'].axes]
  shown = [image[0].get_array() for image in sheet if image]
  assert len(shown) == 12
  np.testing.assert_allclose(shown[0], image[0], atol=1e-6)
  made = task.decode(variables, task.encode(variables, image))
  np.testing.assert_allclose(shown[1], made[0], atol=1e-5)
  used = len(np.unique(task.encode(variables, image[:3])))
  title = pictures['codes_used'].axes[0].get_title()
  assert title.startswith(f'{used} of 16 codes are used')


def test_a_sheet_reads_as_many_images_as_it_shows_and_compiles_once():
  task = small()
  variables = task.init(KEY)
  batch = {
    'image': jax.random.uniform(KEY, (20, 8, 8, 3)),
    'mask': jnp.ones(20),
  }
  batches = iter([batch] * 4)
  name, figure = next(task.pictures(variables, batches))
  assert name == 'reconstructions' and len(figure.axes) == 2 * 32
  assert len(list(batches)) == 2
  compiled = watch.compilations()
  before = compiled['count']
  next(task.pictures(variables, iter([batch] * 2)))
  assert compiled['count'] == before
