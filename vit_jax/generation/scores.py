"""How good the pictures of a model are, by captions that it has not seen."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.config import ConfigError
from vit_jax.data import shapes
from vit_jax.evaluation import clip_score, picture_quality, shapes_checker
from vit_jax.generation.sampler import Sampler, Wanted
from vit_jax.models.decoding import Sampling
from vit_jax.training import inputs, matching

# Pictures that models are tried on. They look at as many at a time, so that
# nothing is compiled for the trial alone.
TRIED = 64


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Real pictures with their captions.

  Attributes:
    images: uint8 [height, width, channels] each, as the model learned them.
    captions: of each, the first.
  """

  images: Sequence[np.ndarray]
  captions: Sequence[str]

  @property
  def are_shapes(self) -> bool:
    """Whether captions are such as `shapes_checker` understands."""
    try:
      for caption in self.captions:
        shapes.parse_caption(caption)
    except ValueError:
      return False
    return True


def read(sampler: Sampler, source: Any, count: int) -> Pairs:
  """Returns the first records of a source of captions.

  Args:
    sampler: whose test preprocessing leaves pictures of 0..1.
    source: see `vit_jax.data.captions`.
    count: of records; fewer if there are no more.

  Raises:
    ConfigError: there are fewer than one, or a picture is of another size than
      those that the model draws.
  """
  numbers = range(min(count, len(source)))
  if not numbers:
    raise ConfigError(
      f'--count={count} of {len(source)} captions are none to draw: use 1 or '
      'more, of a source that has some.'
    )
  shape, images = sampler.model.task.image_shape, []
  for number in numbers:
    try:
      image = sampler.prepare(source[number]['image'])
      image = inputs.with_channels(image, shape)
    except ValueError as error:
      raise ConfigError(
        f'config.data.test.source: picture {number} cannot be compared with '
        f'what the model draws: {error}'
      ) from error
    images.append(np.rint(255 * image.clip(0, 1)).astype(np.uint8))
  return Pairs(images, [source.captions(number)[0] for number in numbers])


@contextlib.contextmanager
def looking(option: str) -> Iterator[None]:
  """Raises ConfigError where a model cannot look at the pictures inside.

  Args:
    option: that names the model.
  """
  try:
    yield
  except ValueError as error:
    raise ConfigError(
      f'{option} names a model that cannot look at these pictures: '
      f'{str(error).rstrip(".")}. Its training has settled that: name a model '
      'whose preprocessing resizes, or one of pictures of this size.'
    ) from error


def draw(
  sampler: Sampler, captions: Sequence[str], count: int, *settings: Any
) -> list[list[np.ndarray]]:
  """Returns `count` pictures of each caption.

  Args:
    sampler: of the model.
    captions: to draw.
    count: of pictures.
    *settings: seed and how to draw, see `Sampler.draw`.
  """
  wanted = [
    Wanted(caption, line, number)
    for line, caption in enumerate(captions)
    for number in range(count)
  ]
  images = list(sampler.draw(wanted, *settings))
  return [
    images[start : start + count] for start in range(0, len(images), count)
  ]


def evaluate(
  sampler: Sampler,
  pairs: Pairs,
  *,
  sampling: Sampling,
  seed: int = 0,
  best_of: int = 1,
  matcher: matching.Matcher | None = None,
  network: picture_quality.Network | None = None,
) -> tuple[dict[str, float], list[str]]:
  """Draws a picture of each caption, and scores them all.

  Of captions of shapes every attribute is read back: of single pictures, of
  the best by a model of images and texts, of what the codes of the real
  pictures keep (nothing drawn can be better), and of pictures held against the
  caption of another one, which is chance.

  Args:
    sampler: of the model.
    pairs: captions to draw, and real pictures to compare with.
    sampling: how to draw.
    seed: of the random numbers.
    best_of: pictures of each caption, of which `matcher` chooses.
    matcher: a model of images and texts, for CLIP scores and to choose.
    network: for Frechet distance and Inception score, on single pictures.

  Returns:
    Figures by name, and notes on what they mean.

  Raises:
    ConfigError: there is nothing to choose by or to choose from, too few
      pictures to compare, or a model cannot look at them; before any is drawn.
  """
  if best_of < 1:
    raise ConfigError(f'--best-of={best_of} draws nothing: use 1 or more.')
  if best_of > 1 and matcher is None:
    raise ConfigError(
      f'The best of {best_of} has to be chosen by a model of images and '
      'texts: name one by --clip.'
    )
  # Before anything is drawn, which is long and would be lost.
  if matcher is not None:
    with looking('--clip'):
      real = _cosines(matcher, pairs.images, pairs.captions)
  if network is not None:
    _check_comparable(pairs, network)
  several = draw(sampler, pairs.captions, best_of, seed, sampling)
  chosen = {'single': [images[0] for images in several]}
  figures, notes = {'generation/captions': len(several)}, []
  if cut := len(sampler.cut(pairs.captions)):
    notes.append(
      f'Of {len(several):,} captions {cut:,} are too long for the model, which '
      'does not read their ends.'
    )
  if matcher is not None:
    flat = [image for images in several for image in images]
    captions = np.repeat(pairs.captions, best_of)
    cosines = _cosines(matcher, flat, captions).reshape(-1, best_of)
    of_sets = {'single': cosines[:, 0], 'real': real}
    if best_of > 1:
      name, best = f'best_of_{best_of}', cosines.argmax(1)
      chosen[name] = [images[n] for images, n in zip(several, best)]
      of_sets[name] = cosines.max(1)
      notes.append(f'The CLIP score of {name} flatters: it made the choice.')
    figures |= _clip_scores(of_sets)
  if pairs.are_shapes:
    figures |= _attributes(chosen, pairs, sampler)
    notes.append(
      'Attributes are read from pixels. codes: of real pictures, encoded and '
      'decoded, which is the ceiling; chance: of single pictures held against '
      "another one's caption."
    )
  if network is not None:
    results = picture_quality.compare(pairs.images, chosen['single'], network)
    figures |= picture_quality.figures(results)
    notes.append(f'{results[0].note}.')
  return figures, notes


def _check_comparable(pairs: Pairs, network: picture_quality.Network) -> None:
  """Raises ConfigError for pictures that a network cannot compare."""
  if len(pairs.images) < 2:
    raise ConfigError(
      '--network compares how pictures are spread, which a single one does not '
      'tell: use --count=2 or more, of a source that has as many.'
    )
  with looking('--network'):
    network.look(pairs.images[:TRIED])


def _attributes(
  chosen: Mapping[str, Sequence[np.ndarray]], pairs: Pairs, sampler: Sampler
) -> dict[str, float]:
  """Returns the shares of attributes that are right in sets of pictures."""
  kept = sampler.decode(sampler.encode(pairs.images))
  sets = [
    *((name, images, pairs.captions) for name, images in chosen.items()),
    ('codes', kept, pairs.captions),
  ]
  # Of one caption there is no other.
  if len(pairs.captions) > 1:
    others = [*pairs.captions[1:], pairs.captions[0]]
    sets.append(('chance', chosen['single'], others))
  figures = {}
  for name, images, captions in sets:
    found = shapes_checker.accuracies(images, captions)
    for kind, share in found.items():
      figures[f'generation/{name}_{kind}'] = share
  return figures


def _cosines(
  matcher: matching.Matcher,
  images: Sequence[np.ndarray],
  captions: Sequence[str],
) -> np.ndarray:
  """Returns the cosine of each image with its caption, [images]."""
  texts, columns = np.unique(captions, return_inverse=True)
  table = matcher.score(images, texts.tolist())
  return table[np.arange(len(images)), columns]


def _clip_scores(of_sets: Mapping[str, np.ndarray]) -> dict[str, float]:
  figures = {}
  for name, cosines in of_sets.items():
    found = clip_score.score(cosines)
    figures[f'generation/{name}_clip_cosine'] = found.cosine
    figures[f'generation/{name}_clip_cosine_error'] = found.error
    figures[f'generation/{name}_clip_score'] = found.clip_score
  return figures
