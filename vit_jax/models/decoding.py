"""Sampling of images from texts, code after code, each computed once.

One compiled loop: texts, and rows of an image that are given, go through the
model all at once; then every step computes one code of all images from what
each layer keeps of those before.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.models import dalle, sparse_attention, transformer

Array = jax.Array

# Halvings of the range of logits, after which the threshold of the k-th largest
# is exact to 1e-8 of that range. Most often it is found much earlier.
_HALVINGS = 32
# Probabilities that are summed before one of their sums is chosen.
_CHUNK = 64


class Sampling(NamedTuple):
  """How codes are drawn; a number that changes does not compile again.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest code.
    top_k: only so many of the likeliest codes are drawn (and those as likely
      as the last); None draws all.
    top_fraction: likewise, as a share of all codes.
    top_p: only the likeliest codes that are drawn with this probability
      together; None draws all.
    guidance: how far to go from the logits without the text to those with it:
      classifier-free guidance (Ho & Salimans, arXiv:2207.12598). None and 1
      are the same, but None computes nothing without the text. It needs a model
      that was trained with some texts dropped. Which codes may be drawn at all
      is decided before, by the logits with the text.
  """

  temperature: float | Array = 1.0
  top_k: int | Array | None = None
  top_fraction: float | Array | None = None
  top_p: float | Array | None = None
  guidance: float | Array | None = None

  def check(self) -> None:
    """Raises ValueError for numbers that cannot be meant."""
    for name, low, high in (
      ('temperature', 0, np.inf),
      ('top_k', 1, np.inf),
      ('top_fraction', 0, 1),
      ('top_p', 0, 1),
      ('guidance', 0, np.inf),
    ):
      value = getattr(self, name)
      if value is not None and not low <= value <= high:
        raise ValueError(
          f'{name} is {value}, expected a number from {low} to {high}.'
        )


def candidate_keys(seed: int, texts: int, images: int) -> Array:
  """Returns the random key of each image, [texts, images].

  It is a function of seed, text and number alone: an image can be made again
  whatever else was made beside it.
  """
  # Of a kind whose numbers do not depend on how many are drawn at a time.
  key = jax.random.key(seed, impl='threefry2x32')
  return jax.vmap(
    lambda text: jax.vmap(
      lambda image: jax.random.fold_in(jax.random.fold_in(key, text), image)
    )(jnp.arange(images))
  )(jnp.arange(texts))


def sample(
  model: dalle.DallE,
  variables: Any,
  text: Array,
  keys: Array,
  sampling: Sampling,
  given: Array | None = None,
) -> Array:
  """Draws images for texts; to be compiled with `model` static.

  Texts are split over devices, the images of one are not: a text that should
  be on several devices is repeated, with other keys.

  Args:
    model: with whatever it was trained; layers in a loop are taken out of it.
    variables: of the model.
    text: int [texts, text], token ids or NO_TOKEN.
    keys: a random key for each image, [texts, images].
    sampling: how to draw.
    given: int [texts, rows * columns], codes of the upper rows that all images
      of a text have in common; None gives none.

  Returns:
    Codes, int32 [texts, images, rows * columns], with those that were given.
  """
  model, variables = _unrolled(model, variables)
  texts, images = keys.shape
  if given is None:
    given = jnp.zeros((texts, 0), jnp.int32)
  start = given.shape[1]
  whole = jnp.broadcast_to(given[:, None], (texts, images, start))
  if start == model.image_length:
    return whole
  pairs, repeated = text, given
  if sampling.guidance is not None:
    # Beside each other, so that they are on one device.
    nothing = jnp.full_like(text, dalle.NO_TOKEN)
    pairs = jnp.stack([text, nothing], axis=1).reshape(-1, text.shape[1])
    repeated = jnp.repeat(given, 2, axis=0)
  (_, logits), out = model.apply(variables, pairs, repeated)
  patterns = model.layer_patterns()
  caches = tuple(
    sparse_attention.begin(layer['key'], layer['value'], pattern, images)
    for layer, pattern in zip(_layers(out), patterns)
  )
  logits = jnp.broadcast_to(
    logits[:, None, -1], (pairs.shape[0], images, logits.shape[-1])
  )

  def draw(logits, place):
    with_text, without = _with_and_without(logits, sampling.guidance)
    return choose(with_text, without, keys, place, sampling)

  def step(carry, place):
    codes, caches = carry
    both = codes
    if sampling.guidance is not None:
      both = jnp.repeat(codes, 2, axis=0)
    (_, logits), out = model.apply(variables, None, both, caches=caches)
    caches = tuple(layer['cache'] for layer in _layers(out))
    codes = draw(logits, place)
    return (codes, caches), codes

  first = draw(logits, start)
  places = jnp.arange(start + 1, model.image_length)
  _, rest = jax.lax.scan(step, (first, caches), places)
  rest = jnp.moveaxis(rest, 0, 2)
  return jnp.concatenate([whole, first[..., None], rest], axis=2)


def _unrolled(model: dalle.DallE, variables: Any) -> tuple[dalle.DallE, Any]:
  """Returns the same model without a loop over layers."""
  params = dict(variables['params'])
  params['encoder'] = transformer.unrolled(params['encoder'])
  model = model.clone(scan=False, remat='none')
  own = {name: variables[name] for name in variables if name == 'constants'}
  return model, {**own, 'params': params}


def _layers(out: Any) -> list[Any]:
  """Returns the intermediates of each layer."""
  blocks = out['blocks']
  # By number: of a hundred layers, names do not sort alike.
  return [blocks[f'block_{i:02d}'] for i in range(len(blocks))]


def _with_and_without(
  logits: Array, guidance: float | Array | None
) -> tuple[Array, Array | None]:
  """Parts logits [2 * texts, ...] of pairs: with the text, and without."""
  if guidance is None:
    return logits, None
  pairs = logits.reshape(-1, 2, *logits.shape[1:])
  return pairs[:, 0], pairs[:, 1]


def choose(
  logits: Array,
  without: Array | None,
  keys: Array,
  place: Array | int,
  sampling: Sampling,
) -> Array:
  """Draws codes.

  One random number a code: the place where it falls on the line of all
  probabilities, which is cheaper than a random number for each.

  Args:
    logits: float32 [texts, images, codes].
    without: the same without the text, for guidance; None for none.
    keys: of each image, [texts, images].
    place: on the grid, of the codes; each has its own random number.
    sampling: how to draw.

  Returns:
    int32 [texts, images].
  """
  greedy = jnp.asarray(sampling.temperature) == 0
  temperature = jnp.where(greedy, 1, sampling.temperature)
  logits = _likeliest(logits, temperature, sampling)
  if without is not None:
    # What cannot be stays so: of two very small probabilities, the larger
    # would otherwise count for much.
    without = without / temperature
    guided = without + sampling.guidance * (logits - without)
    logits = jnp.where(logits == -jnp.inf, -jnp.inf, guided)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  uniform = jax.vmap(
    jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, place)))
  )(keys)
  drawn = _at(weights, uniform)
  likeliest = logits.argmax(-1).astype(jnp.int32)
  # Rounding of sums can lead beside a code that may be drawn.
  wrong = _take(weights, drawn) == 0
  return jnp.where(greedy | wrong, likeliest, drawn)


def _likeliest(logits: Array, temperature: Array, sampling: Sampling) -> Array:
  """Divides by the temperature; codes not to be drawn get -infinity."""
  logits = (logits - logits.max(-1, keepdims=True)) / temperature
  number = logits.shape[-1]
  if sampling.top_fraction is not None:
    count = jnp.maximum(1, jnp.round(number * sampling.top_fraction))
    logits = _cut(logits, jnp.ones_like(logits), count)
  if sampling.top_k is not None:
    logits = _cut(logits, jnp.ones_like(logits), sampling.top_k)
  if sampling.top_p is not None:
    share = jax.nn.softmax(logits)
    logits = _cut(logits, share, sampling.top_p)
  return logits


def _cut(logits: Array, weights: Array, wanted: float | Array) -> Array:
  """Sets all but the largest logits to -infinity.

  Sorting would take ten times as long: the threshold is searched for, by
  halving the range in which it must be.

  Args:
    logits: [..., codes].
    weights: of the logits, at least 0.
    wanted: what the weights of those that stay add up to, at least; the
      largest stays in any case.
  """

  def weight(threshold):
    kept = jnp.where(logits >= threshold, weights, 0)
    return kept.sum(-1, keepdims=True)

  def halve(state):
    low, high, found, count = state
    middle = (low + high) / 2
    total = weight(middle)
    enough = total >= wanted
    low, high = jnp.where(enough, middle, low), jnp.where(enough, high, middle)
    return low, high, found | (total == wanted), count + 1

  def goes_on(state):
    *_, found, count = state
    return ~found.all() & (count < _HALVINGS)

  finite = jnp.where(logits == -jnp.inf, jnp.inf, logits)
  low, high = finite.min(-1, keepdims=True), logits.max(-1, keepdims=True)
  found = jnp.zeros(low.shape, bool)
  low, *_ = jax.lax.while_loop(goes_on, halve, (low, high, found, 0))
  return jnp.where(logits >= low, logits, -jnp.inf)


def _at(weights: Array, uniform: Array) -> Array:
  """Returns where the share `uniform` of the sum of weights is reached.

  Args:
    weights: [..., codes].
    uniform: [...], from 0 to less than 1.
  """
  number = weights.shape[-1]
  missing = -number % _CHUNK
  padded = jnp.pad(weights, [(0, 0)] * uniform.ndim + [(0, missing)])
  chunks = padded.reshape(*uniform.shape, -1, _CHUNK)
  ends = jnp.cumsum(chunks.sum(-1), axis=-1)
  goal = uniform * ends[..., -1]
  chunk = _passed(ends, goal)
  before = _take(jnp.pad(ends, [(0, 0)] * uniform.ndim + [(1, 0)]), chunk)
  within = jnp.take_along_axis(chunks, chunk[..., None, None], axis=-2)
  ends = jnp.cumsum(within.squeeze(-2), axis=-1)
  code = chunk * _CHUNK + _passed(ends, goal - before)
  return jnp.minimum(code, number - 1)


def _passed(ends: Array, goal: Array) -> Array:
  """Returns how many of ascending numbers [..., n] are passed: below n."""
  count = (ends <= goal[..., None]).sum(-1, dtype=jnp.int32)
  return jnp.minimum(count, ends.shape[-1] - 1)


def _take(x: Array, index: Array) -> Array:
  """Returns one of each [..., n]."""
  return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
