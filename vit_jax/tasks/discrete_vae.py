"""Learning to write images in codes, and to read them: DALL-E's first stage.

Ramesh et al., arXiv:2102.12092, section 2.1 and appendix A.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from vit_jax.models import discrete_vae as dvae
from vit_jax.tasks import discrete_vae_report, ramp

Array = jax.Array
Batch = Mapping[str, Array]


# Of the similarity of vectors and codes, as the temperature of a softmax. With
# a higher one, few codes that are chosen and many that nearly are look even.
_SOFTNESS = 0.03
# A batch that uses fewer codes than this says little by them.
_COLLAPSED = 8
# What one way of choosing codes reads and the other does not.
_GUMBEL = ('temperature', 'kl_weight')
_VECTOR = ('commitment', 'evenness')


def logit_laplace(image: Array, statistics: Array) -> Array:
  """Returns the negative log-likelihood of each value (appendix A.3).

  The logit of a pixel has a Laplace distribution, so that the pixel itself
  stays between 0 and 1; without it, half of the probability of black and white
  would lie outside.

  Args:
    image: [..., channels], mapped to where its logits are finite.
    statistics: [..., 2 * channels]: the distribution's location and the
      logarithm of its scale.
  """
  location, log_scale = jnp.split(statistics, 2, axis=-1)
  logit = jnp.log(image) - jnp.log1p(-image)
  distance = jnp.abs(logit - location) * jnp.exp(-log_scale)
  return distance + log_scale + jnp.log(2 * image * (1 - image))


def logit_normal(image: Array, statistics: Array, deviation: float) -> Array:
  """Returns the negative log-likelihood of each value.

  Like `logit_laplace`, with a normal distribution of a given deviation.

  Args:
    image: [..., channels], mapped to where its logits are finite.
    statistics: [..., 2 * channels]; the latter half is not used.
    deviation: standard deviation of the logits; those of pixels from 0 to 1
      lie within 4.4.
  """
  location, _ = jnp.split(statistics, 2, axis=-1)
  logit = jnp.log(image) - jnp.log1p(-image)
  distance = jnp.square((logit - location) / deviation) / 2
  scale = deviation * jnp.sqrt(2 * jnp.pi)
  return distance + jnp.log(scale * image * (1 - image))


def perplexity(shares: Array) -> Array:
  """Returns how many codes seem to be used: exp of the entropy of [codes]."""
  return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum())


@dataclasses.dataclass(frozen=True)
class DiscreteVae:
  """The evidence lower bound of images, with a relaxed choice of codes.

  Images have values from 0 to 1.

  A codebook collapses where the encoder becomes sure of a code before the
  decoder can tell codes apart: no other is ever tried again. What holds
  against it is the weight of the KL divergence to the uniform prior, which
  keeps the choice open (arXiv:2102.12092, footnote 4), and a temperature that
  falls slowly. Drawings, most of which is white, need more: white that is 0 to
  the encoder, and a weight that begins high and falls (with the paper's from 0,
  one to seven codes of drawn shapes were left after 300 steps). With
  quantization='vector' it is `evenness`, which draws codes that nothing has
  chosen to where vectors are, until enough are in use. `perplexity_of_codes`
  and `codes_used` show it, and `warning` tells.
  """

  reads: ClassVar[str] = 'images'
  sheets: ClassVar[tuple[str, ...]] = ('reconstructions',)
  bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

  # A `vit_jax.models.discrete_vae.DiscreteVae`.
  model: nn.Module
  # Height, width and channels of an image.
  image_shape: tuple[int, int, int]
  # Converts durations; None where nothing is trained.
  to_steps: Callable[[str], int] | None = None
  # Of the relaxed choice of codes, such as '1 -> 1/16 over 5%'; see `ramp`.
  temperature: str = '1 -> 1/16 over 150000steps'
  # Of the KL divergence of all codes of an image, where the log-likelihood
  # of all its values has weight 1.
  kl_weight: str = '0 -> 6.6 over 5000steps'
  # logit_laplace: the paper's, which learns how sure it is of each value.
  # logit_normal: for drawings whose median pixel is background, which is
  # where the former stays for long.
  likelihood: Literal['logit_laplace', 'logit_normal'] = 'logit_laplace'
  # Of 'logit_normal'; the smaller, the less the KL divergence weighs.
  deviation: float = 0.5
  # Of quantization='vector': how much the encoder stays near its choice.
  commitment: float = 0.25
  # Of quantization='vector': how much all codes are to be chosen alike. At the
  # end not at all, so that they settle where their vectors are.
  evenness: str = '0.02 -> 0 over 50%'

  def __post_init__(self):
    for name in ('kl_weight', 'evenness'):
      weight = ramp.parse(getattr(self, name), name)
      if min(weight.first, weight.last) < 0:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}, expected 0 or more at both '
          'ends: it is the weight of a part of the loss.'
        )
    temperature = ramp.parse(self.temperature, 'temperature')
    if min(temperature.first, temperature.last) <= 0:
      raise ValueError(
        f'temperature is {self.temperature!r}, expected more than 0 at both '
        'ends: logits are divided by it.'
      )
    if not isinstance(self.model, dvae.DiscreteVae):
      raise ValueError(
        'Codes are those of a discrete VAE: choose a model with the name '
        "'discrete_vae'."
      )
    if not self.deviation > 0:
      raise ValueError(f'deviation is {self.deviation}, expected more than 0.')
    if not self.commitment >= 0:
      raise ValueError(f'commitment is {self.commitment}, expected 0 or more.')
    self._check_unused()

  def _check_unused(self) -> None:
    """Raises ValueError for values that the choices of others leave unread."""
    if self.model.quantization == 'vector':
      unread = {name: "quantization='vector'" for name in _GUMBEL}
    else:
      unread = {name: "quantization='gumbel'" for name in _VECTOR}
    if self.likelihood == 'logit_laplace':
      unread['deviation'] = "likelihood='logit_laplace'"
    for field in dataclasses.fields(self):
      if field.name not in unread:
        continue
      if getattr(self, field.name) != field.default:
        raise ValueError(
          f'{field.name} is {getattr(self, field.name)!r}, which '
          f'{unread[field.name]} has no use for: leave it out.'
        )

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples."""
    shape = (size, *self.image_shape)
    return {'image': jax.ShapeDtypeStruct(shape, jnp.float32)}

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    return self.model.init(key, image)

  def _surprise(self, image: Array, statistics: Array) -> Array:
    """Returns the negative log-likelihood of each value of images."""
    image = dvae.map_pixels(image)
    if self.likelihood == 'logit_normal':
      return logit_normal(image, statistics, self.deviation)
    return logit_laplace(image, statistics)

  def _divergence(self, logits: Array) -> Array:
    """Returns the KL divergence to evenly used codes, [batch, rows, columns].

    That of the categorical distribution: the temperature does not enter it.
    """
    if self.model.quantization == 'vector':
      return jnp.full(logits.shape[:-1], jnp.log(logits.shape[-1]))
    log_share = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_share) * log_share).sum(-1)
    return jnp.log(logits.shape[-1]) - entropy

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the loss for each value of an image, and metrics of training.

    Args:
      variables: of the model.
      batch: `image` [batch, height, width, channels], 0..1.
      key: random key of this batch.
      step: from 0; the schedules follow it.
      train: whether codes are mixed; otherwise the most probable are decoded.
    """
    image = batch['image']
    is_vector = self.model.quantization == 'vector'
    options = {}
    if not is_vector:
      options['temperature'] = self._now('temperature', step)
    statistics, out = self.model.apply(
      variables, image, train=train, rngs={'codes': key}, **options
    )
    surprise = self._surprise(image, statistics).mean()
    metrics = self._usage(out['codes'], jnp.ones(len(image)))
    metrics['negative_log_likelihood'] = surprise
    if is_vector:
      uneven = self._now('evenness', step) * self._unevenness(out['logits'])
      return surprise + self._attraction(out) + uneven, metrics, {}
    divergence = self._divergence(out['logits'])
    kl_weight = self._now('kl_weight', step)
    metrics['kl'] = divergence.mean()
    metrics |= {'kl_weight': kl_weight, **options}
    penalty = kl_weight * divergence.sum() / image.size
    return surprise + penalty, metrics, {}

  def _now(self, name: str, step: Array) -> Array:
    """Returns what a field with a ramp is at a step."""
    return ramp.parse(getattr(self, name), name).at(step, self.to_steps)

  def _attraction(self, out: Mapping[str, Array]) -> Array:
    """Draws codes and what chose them together (arXiv:1711.00937, eq. 3)."""
    vectors, chosen = out['vectors'], out['chosen']
    stop = jax.lax.stop_gradient
    to_code = jnp.square(vectors - stop(chosen)).sum(-1).mean()
    to_vector = jnp.square(stop(vectors) - chosen).sum(-1).mean()
    return to_vector + self.commitment * to_code

  def _unevenness(self, similarity: Array) -> Array:
    """Returns how far codes are from being chosen alike by a batch, in nats.

    The KL divergence of an even choice from the mean one, made soft. Unlike by
    the entropy of the mean one (arXiv:2310.05737), each code is drawn to the
    vectors nearest to it with the same force, however far these are. To those
    above all that are far from their own code: a background that one code
    describes well is most of some images, and should not have them all.

    Args:
      similarity: of vectors to codes, -1..1, [..., codes].
    """
    log_shares = jax.nn.log_softmax(similarity / _SOFTNESS)
    distance = 1 - jax.lax.stop_gradient(similarity).max(-1, keepdims=True)
    weight = jnp.maximum(distance, 1e-6)
    log_shares += jnp.log(weight / weight.sum())
    log_shares = log_shares.reshape(-1, log_shares.shape[-1])
    log_shares = jax.nn.logsumexp(log_shares, axis=0)
    return -log_shares.mean() - jnp.log(len(log_shares))

  def _usage(self, codes: Array, weight: Array) -> dict[str, Array]:
    """Returns how many codes a batch uses.

    Args:
      codes: [batch, rows, columns].
      weight: [batch], 0 for examples that do not count.

    Returns:
      `perplexity_of_codes`, and `codes_used`: a share of the vocabulary. Of a
      batch that comes in parts, means of those of the parts.
    """
    size = self.model.vocabulary_size
    weight = jnp.broadcast_to(weight[:, None, None], codes.shape)
    counts = jnp.bincount(codes.ravel(), weight.ravel(), length=size)
    shares = counts / jnp.maximum(counts.sum(), 1)
    return {
      'perplexity_of_codes': perplexity(shares),
      'codes_used': (counts > 0).mean(),
    }

  def warning(self, means: Mapping[str, float]) -> str:
    """Returns what to say if hardly a code is used; '' if not.

    Args:
      means: of the metrics of training.
    """
    size = self.model.vocabulary_size
    used = means['codes_used'] * size
    if used >= min(_COLLAPSED, size / 2):
      return ''
    names = 'kl_weight, or a temperature that falls more slowly'
    if self.model.quantization == 'vector':
      names = 'evenness'
    return (
      f'collapsed: a batch uses {used:.0f} of {size:,} codes. Try a higher '
      f'config.task.{names}, or a lower config.optimizer.learning_rate.'
    )

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns what is lost of each example by its codes, [batch].

    All of it is of the most probable codes. `loss` is the negative evidence
    lower bound for each value in nats, whatever `kl_weight` is; errors are of
    pixels from 0 to 1. `perplexity_of_codes` and `codes_used` are those of
    the batch.
    """
    image = batch['image']
    statistics, out = self.model.apply(variables, image)
    surprise = self._surprise(image, statistics).mean((1, 2, 3))
    divergence = self._divergence(out['logits'])
    values = image[0].size
    error = dvae.to_pixels(statistics) - image
    mask = batch.get('mask', jnp.ones(len(image)))
    usage = self._usage(out['codes'], mask)
    return {
      'loss': surprise + divergence.sum((1, 2)) / values,
      'negative_log_likelihood': surprise,
      'kl': divergence.mean((1, 2)),
      'absolute_error': jnp.abs(error).mean((1, 2, 3)),
      'squared_error': jnp.square(error).mean((1, 2, 3)),
      **{name: jnp.full(len(image), value) for name, value in usage.items()},
    }

  def encode(self, variables: Mapping[str, Any], image: Array) -> Array:
    """Returns the codes of images, int32 [batch, rows, columns].

    Args:
      variables: of the model.
      image: [batch, height, width, channels], 0..1.
    """
    logits, _ = self.model.apply(variables, image, method='encode')
    return logits.argmax(-1).astype(jnp.int32)

  def decode(self, variables: Mapping[str, Any], codes: Array) -> Array:
    """Returns the images, 0..1, that codes [batch, rows, columns] mean."""
    statistics, _ = self.model.apply(variables, codes, method='decode')
    return dvae.to_pixels(statistics)

  @functools.cached_property
  def _look(self) -> Callable:
    # Compiled once for all sheets.
    return discrete_vae_report.make_look(
      self.encode, self.decode, self.model.vocabulary_size
    )

  def pictures(
    self, variables: Mapping[str, Any], batches: Iterable[Batch]
  ) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure of what codes keep of the test data."""
    yield from discrete_vae_report.pictures(self._look, variables, batches)
