"""Scenes of coloured shapes, drawn by code, with captions of known truth.

  a small red circle at the top left
  a large blue square above a small green cross

A source of scenes without end: what record `index` shows is a function of
(seed, index) alone. Some pairs of colour and shape are never in 'train', and
every scene of 'test' has one of them.
"""

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# On white, and as far apart as eight colours can be.
COLORS = {
  'red': (215, 35, 35),
  'orange': (255, 140, 20),
  'yellow': (240, 220, 40),
  'green': (35, 150, 60),
  'cyan': (60, 205, 220),
  'blue': (40, 70, 215),
  'purple': (140, 50, 180),
  'black': (25, 25, 25),
}
BACKGROUND = (255, 255, 255)
SHAPES = ('circle', 'square', 'triangle', 'cross')
# From the centre to the side, as a share of the picture's height.
SIZES = {'small': 0.1, 'large': 0.15}
# Centres of one thing, or of two, as shares of the picture: x goes to the
# right, y down.
PLACES = {
  'at the top left': ((1 / 6, 1 / 6),),
  'at the top': ((1 / 2, 1 / 6),),
  'at the top right': ((5 / 6, 1 / 6),),
  'at the left': ((1 / 6, 1 / 2),),
  'in the middle': ((1 / 2, 1 / 2),),
  'at the right': ((5 / 6, 1 / 2),),
  'at the bottom left': ((1 / 6, 5 / 6),),
  'at the bottom': ((1 / 2, 5 / 6),),
  'at the bottom right': ((5 / 6, 5 / 6),),
}
RELATIONS = {
  'above': ((1 / 2, 1 / 4), (1 / 2, 3 / 4)),
  'below': ((1 / 2, 3 / 4), (1 / 2, 1 / 4)),
  'to the left of': ((1 / 4, 1 / 2), (3 / 4, 1 / 2)),
  'to the right of': ((3 / 4, 1 / 2), (1 / 4, 1 / 2)),
}
# By how much a centre and a size may differ, so that no two pictures are the
# same; things stay inside their part of the picture, one of 3 x 3 or of 2 x 2.
_SHIFT = {1: 0.012, 2: 0.06}
_STRETCH = 0.03
# Share of the words for sizes that captions of 'train' leave out.
_UNSAID = 0.1
# More scenes than a run sees; 'train[-1000:]' are ones that it does not.
_TRAIN_LENGTH = 2**31

_PAIRS = tuple(itertools.product(COLORS, SHAPES))
# Two colours of each shape, and each colour in one shape.
HELD_OUT = tuple(
  (color, SHAPES[(number // 2 + 1) % len(SHAPES)])
  for number, color in enumerate(COLORS)
)
_TRAINED = tuple(pair for pair in _PAIRS if pair not in HELD_OUT)

_THING = 'an? (?:({}) )?({}) ({})'.format(
  *map('|'.join, (SIZES, COLORS, SHAPES))
)
_ONE = re.compile(f'{_THING} ({"|".join(PLACES)})')
_TWO = re.compile(f'{_THING} ({"|".join(RELATIONS)}) {_THING}')


@dataclasses.dataclass(frozen=True)
class Thing:
  """A shape; a caption may leave its size out (None)."""

  size: str | None
  color: str
  shape: str

  def __str__(self) -> str:
    words = f'{self.size or ""} {self.color} {self.shape}'.strip()
    return f'an {words}' if words[0] in 'aeiou' else f'a {words}'


@dataclasses.dataclass(frozen=True)
class Scene:
  """One thing in a place of PLACES, or two, related as RELATIONS say."""

  things: tuple[Thing, ...]
  place: str

  def __str__(self) -> str:
    first, *others = map(str, self.things)
    return ' '.join([first, self.place, *others])

  def attributes(self) -> dict[str, str]:
    """Returns what can be right or wrong about a picture of the scene.

    Returns:
      'place', and of each thing 'size_1', 'color_1', 'shape_1', ...; a size
      that is not said is not there.
    """
    result = {'place': self.place}
    for number, thing in enumerate(self.things, 1):
      for name, value in dataclasses.asdict(thing).items():
        if value is not None:
          result[f'{name}_{number}'] = value
    return result


def parse_caption(caption: str) -> Scene:
  """Returns the scene that a caption describes.

  Raises:
    ValueError: If it does not have the form of the captions here.
  """
  words = ' '.join(caption.lower().split())
  if match := _ONE.fullmatch(words):
    *thing, place = match.groups()
    return Scene((Thing(*thing),), place)
  if match := _TWO.fullmatch(words):
    *first, place = match.groups()[:4]
    return Scene((Thing(*first), Thing(*match.groups()[4:])), place)
  raise ValueError(
    f"{caption!r} is not like 'a small red circle at the top left' or 'a large "
    "blue square above a green cross', with the colours "
    f'{", ".join(COLORS)}; the shapes {", ".join(SHAPES)}; the places '
    f'{", ".join((*PLACES, *RELATIONS))}'
  )


def draw(scene: Scene, pixels: int, rng: np.random.Generator) -> np.ndarray:
  """Draws a scene; edges are smooth.

  Args:
    scene: What to draw; all sizes are known.
    pixels: Height and width.
    rng: Source of small differences in place and size.

  Returns:
    uint8 [pixels, pixels, 3].
  """
  image = np.full((pixels, pixels, 3), BACKGROUND, np.float32)
  middle = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
  shift = _SHIFT[len(scene.things)]
  centres = (PLACES | RELATIONS)[scene.place]
  for thing, (x, y) in zip(scene.things, centres):
    x, y, stretch = (x, y, 1) + rng.uniform(-1, 1, 3) * (shift, shift, _STRETCH)
    radius = SIZES[thing.size] * stretch
    outside = _distance(
      thing.shape, (middle - x)[None] / radius, (middle - y)[:, None] / radius
    )
    cover = np.clip(0.5 - outside * (radius * pixels), 0, 1)[..., None]
    image += cover * (np.array(COLORS[thing.color], np.float32) - image)
  return np.rint(image).astype(np.uint8)


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns how far points are outside a shape from -1 to 1; inside, < 0."""
  across, down = np.abs(x), np.abs(y)
  if shape == 'circle':
    return np.hypot(x, y) - 1
  if shape == 'square':
    return np.maximum(across, down) - 1
  if shape == 'triangle':
    # The apex is (0, -1), the base from (-1, 0.75) to (1, 0.75).
    side = (1.75 * across - (y + 1)) / np.hypot(1.75, 1)
    return np.maximum(side, y - 0.75)
  upright = np.maximum(across - 0.32, down - 1)
  return np.minimum(upright, np.maximum(across - 1, down - 0.32))


class ShapesSource:
  """Scenes drawn when they are asked for; picklable.

  Attributes:
    split: 'train': random scenes without the pairs of HELD_OUT, 2**31 of
      them. 'test': every scene with one of those pairs, once, shuffled.
    pixels: Height and width of pictures.
    objects: Things in a scene, 1 or 2.
    seed: Of scenes and pictures.
  """

  def __init__(self, split: str, pixels: int, objects: int, seed: int):
    self.split = split
    self.pixels = pixels
    self.objects = objects
    self.seed = seed
    self._places = tuple(PLACES if objects == 1 else RELATIONS)
    self._scenes = _held_out_scenes(objects) if split == 'test' else ()

  def __len__(self) -> int:
    return len(self._scenes) or _TRAIN_LENGTH

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns 'image', 'texts' (one) and the scene's 'attributes'."""
    scene, said, rng = self._scene(index)
    return {
      'image': draw(scene, self.pixels, rng),
      'texts': (str(said),),
      'attributes': scene.attributes(),
    }

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the caption of a record, without drawing it."""
    return (str(self._scene(index)[1]),)

  def fields(self, index: int) -> dict[str, str]:
    """Returns the attributes of a record, without drawing it."""
    return self._scene(index)[0].attributes()

  def name(self, index: int) -> str:
    return f'{self.split}/{index}'

  def _scene(self, index: int) -> tuple[Scene, Scene, np.random.Generator]:
    """Returns a scene, as much of it as is said, and numbers to draw it."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
    if self._scenes:
      return self._scenes[index], self._scenes[index], rng
    # Sampling pairs without replacement: no two things look alike.
    first = int(rng.integers(len(_TRAINED)))
    second = int(rng.integers(1, len(_TRAINED)))
    pairs = (first, (first + second) % len(_TRAINED))[: self.objects]
    place = self._places[int(rng.integers(len(self._places)))]
    sizes = rng.integers(len(SIZES), size=self.objects)
    unsaid = rng.random(self.objects) < _UNSAID
    things = [
      Thing(tuple(SIZES)[size], *_TRAINED[pair])
      for size, pair in zip(sizes, pairs)
    ]
    said = [
      dataclasses.replace(thing, size=None) if hide else thing
      for thing, hide in zip(things, unsaid)
    ]
    return Scene(tuple(things), place), Scene(tuple(said), place), rng


def shapes(argument: str) -> dict[str, Callable[[], ShapesSource]]:
  """Returns how to open each split of the drawn scenes.

  Args:
    argument: Settings as in 'pixels=64,objects=1,seed=0', which are the
      defaults: height and width; things in a scene, 1 or 2; and the seed.

  Raises:
    ValueError: If a setting is unknown or out of range.
  """
  settings = {'pixels': 64, 'objects': 1, 'seed': 0}
  for part in filter(None, argument.split(',')):
    name, _, value = part.partition('=')
    if name not in settings or not value.isdecimal():
      near = difflib.get_close_matches(name, settings, n=1)
      hint = f'; did you mean {near[0]!r}?' if near and near[0] != name else ''
      raise ValueError(
        f"bad setting {part!r} of 'shapes': expected {', '.join(settings)}, "
        f'each with a whole number{hint}'
      )
    settings[name] = int(value)
  if (
    settings['pixels'] < 16
    or settings['objects'] not in (1, 2)
    or settings['seed'] >= 2**32
  ):
    raise ValueError(
      f"'shapes:{argument}': pixels are 16 or more, objects 1 or 2, and the "
      'seed is below 2**32'
    )
  return {
    split: functools.partial(ShapesSource, split, **settings)
    for split in ('train', 'test')
  }


@functools.cache
def _held_out_scenes(objects: int) -> Sequence[Scene]:
  """Returns each scene that has a pair of HELD_OUT, in a fixed random order."""
  if objects == 1:
    scenes = [
      Scene((Thing(size, *pair),), place)
      for pair, size, place in itertools.product(HELD_OUT, SIZES, PLACES)
    ]
  else:
    scenes = [
      Scene((Thing(one, *first), Thing(two, *second)), relation)
      for first, second in itertools.permutations(_PAIRS, 2)
      if first in HELD_OUT or second in HELD_OUT
      for one, two, relation in itertools.product(SIZES, SIZES, RELATIONS)
    ]
  order = np.random.default_rng(0).permutation(len(scenes))
  return tuple(scenes[number] for number in order)
