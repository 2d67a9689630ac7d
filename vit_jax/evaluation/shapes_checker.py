"""Reads coloured shapes from pixels, and judges pictures by their captions.

For pictures of the captions of `vit_jax.data.shapes`, drawn or generated. This
looks at them from the other side than the code that draws: a pixel is so much
of a colour on white, a thing is pixels that hang together, and its area and
centroid say where each shape would have to be. The shape that covers the thing
best is taken for it, if it covers it well.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from vit_jax.data import shapes

_WHITE = 255.0
_COLORS = _WHITE - np.array([*shapes.COLORS.values()], np.float32)
# A pixel belongs to a thing if that much of it is coloured.
_COVERED = 0.4
# Less of the smallest thing than this is a speck, which does not count.
_SPECK = 1 / 3
# Of how much two areas have in common, as a share of what they have together.
_ALIKE = 0.6
# A thing has the colour that explains most of its difference from white, if
# there is as much of it, and no larger share remains unexplained.
_PALE, _STRANGE = 0.5, 0.12
# A size may be wrong by this factor, half of what is between two of them.
_SIZE_FACTOR = math.sqrt(shapes.SIZES['large'] / shapes.SIZES['small'])
# A thing above another one is so much further from it that way than sideways.
_STRAIGHT = 1.5
# How far the soft edge of a thing reaches, as a share of the height.
_EDGE = 1 / 16
# How blurred a thing may be: standard deviations, as shares of the height.
_BLUR = (0.0, 0.025, 0.05)
# So many things of a picture, the largest, are compared with the caption.
_JUDGED = 4
# Height in pixels at which outlines are drawn, before they are made small.
_FINE = 256
# What is right or wrong, in the order in which it is shown.
_KINDS = ('place', 'size', 'color', 'shape', 'all')
_CIRCLE = np.linspace(0, 2 * np.pi, 64, endpoint=False)
_ARM = 0.32
# Corners, as (x, y) with y down; a thing of size 1 is from -1 to 1.
_OUTLINES = {
  'circle': np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], 1),
  'square': np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
  'triangle': np.array([(0, -1), (1, 0.75), (-1, 0.75)]),
  'cross': np.array(
    [
      (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM),
      (_ARM, _ARM), (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM),
      (-1, -_ARM), (-_ARM, -_ARM),
    ]
  ),
}  # fmt: skip


class Seen(NamedTuple):
  """A thing in a picture; what cannot be told is None.

  Attributes:
    color: one of `shapes.COLORS`.
    shape: one of `shapes.SHAPES`.
    size: one of `shapes.SIZES`.
    x: of its centroid, as a share of the width.
    y: of its centroid from above, as a share of the height.
  """

  color: str | None
  shape: str | None
  size: str | None
  x: float
  y: float


def things(image: np.ndarray) -> list[Seen]:
  """Returns the things in a picture, the largest first.

  Args:
    image: uint8 [height, width, 3] with a white background.

  Raises:
    ValueError: it is no such array.
  """
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
      f'a picture is {image.dtype} {image.shape}, expected uint8 '
      '[height, width, 3]'
    )
  missing = _WHITE - image.astype(np.float32)
  # How much of each colour is in each pixel, and what that does not explain.
  product, length = missing @ _COLORS.T, np.square(_COLORS).sum(-1)
  share = (product / length).clip(0, 1)
  strange = share * (share * length - 2 * product)
  strange += np.square(missing).sum(-1, keepdims=True)
  likeliest = strange.argmin(-1)[..., None]
  found = []
  for region in _regions(np.take_along_axis(share, likeliest, -1)[..., 0]):
    unexplained = strange[region].sum(0) / np.square(missing[region]).sum()
    color = int(unexplained.argmin())
    cover = np.where(region, share[..., color], 0)
    inside = cover[cover > _COVERED]
    is_color = (
      inside.size > 0
      and np.quantile(inside, 0.9) >= _PALE
      and unexplained[color] <= _STRANGE
    )
    name = list(shapes.COLORS)[color] if is_color else None
    found.append((cover.sum(), Seen(name, *_form(cover))))
  return [seen for _, seen in sorted(found, key=lambda one: -one[0])]


def _regions(cover: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the pixels of each thing and its soft edge, bool [height, width].

  Args:
    cover: share of each pixel that is coloured.
  """
  height, width = cover.shape
  smallest = min(map(_area, _OUTLINES.values())) * shapes.SIZES['small'] ** 2
  # Of each pixel, which thing is the nearest and how far away it is.
  distance, nearest = cv2.distanceTransformWithLabels(
    (cover <= _COVERED).astype(np.uint8), cv2.DIST_L2, 5
  )
  for label in range(1, nearest.max() + 1):
    region = (nearest == label) & (distance <= max(2, _EDGE * height))
    if cover[region].sum() > _SPECK * smallest * height * width:
      yield region


def _form(cover: np.ndarray) -> tuple[str | None, str | None, float, float]:
  """Returns shape, size and centre of the one thing in a picture.

  Args:
    cover: share of each pixel that the thing covers, [height, width].
  """
  height, width = cover.shape
  area = cover.sum()
  x, y = (
    float((cover * (places + 0.5)).sum() / area)
    for places in np.meshgrid(np.arange(width), np.arange(height))
  )
  common, shape, radius = max(
    _compare(name, cover, area, x, y) for name in _OUTLINES
  )
  sizes = {
    name: abs(math.log(radius / height / size))
    for name, size in shapes.SIZES.items()
  }
  size = min(sizes, key=sizes.get)
  return (
    shape if common >= _ALIKE else None,
    size if sizes[size] <= math.log(_SIZE_FACTOR) else None,
    x / width,
    y / height,
  )


def _compare(
  name: str, cover: np.ndarray, area: float, x: float, y: float
) -> tuple[float, str, float]:
  """Returns how well a shape of an area and centroid covers a thing.

  Returns:
    The area in common as a share of both together; the name; the size in
    pixels.
  """
  outline = _OUTLINES[name]
  radius = math.sqrt(area / _area(outline))
  corners = (outline - _centroid(outline)) * radius + (x, y)
  height, width = cover.shape
  finer = -(-_FINE // height)
  # OpenCV counts from the middle of the first pixel.
  fine = np.rint(corners * finer - 0.5).astype(np.int32)
  filled = np.zeros((height * finer, width * finer), np.uint8)
  cv2.fillPoly(filled, [fine], 255)
  whole = cv2.resize(filled, (width, height), interpolation=cv2.INTER_AREA)
  common = 0.0
  for blur in _BLUR:
    ideal = whole / np.float32(255)
    if blur:
      ideal = cv2.GaussianBlur(ideal, (0, 0), blur * height)
    both = np.minimum(ideal, cover).sum() / np.maximum(ideal, cover).sum()
    common = max(common, float(both))
  return common, name, radius


def _area(outline: np.ndarray) -> float:
  return cv2.contourArea(outline.astype(np.float32))


def _centroid(outline: np.ndarray) -> tuple[float, float]:
  moments = cv2.moments(outline.astype(np.float32))
  return moments['m10'] / moments['m00'], moments['m01'] / moments['m00']


def check(image: np.ndarray, caption: str) -> dict[str, bool]:
  """Returns what a picture has as its caption says.

  Things of the picture are taken for those of the caption so that most is
  right. A thing that is not there is wrong in all; one too many makes the place
  wrong.

  Args:
    image: uint8 [height, width, 3].
    caption: such as 'a small red circle at the top left'.

  Returns:
    Whether each attribute that the caption says is right, by the names of
    `shapes.Scene.attributes`.

  Raises:
    ValueError: the caption is not of that form, or the image no such array.
  """
  scene = shapes.parse_caption(caption)
  seen, wanted, results = things(image), len(scene.things), []
  is_whole = len(seen) == wanted
  for chosen in itertools.permutations(seen[:_JUDGED], min(wanted, len(seen))):
    result = dict.fromkeys(scene.attributes(), False)
    result['place'] = is_whole and _is_at(scene.place, chosen)
    for number, (thing, said) in enumerate(zip(chosen, scene.things), 1):
      for name in ('size', 'color', 'shape'):
        if getattr(said, name) is not None:
          right = getattr(thing, name) == getattr(said, name)
          result[f'{name}_{number}'] = right
    results.append(result)
  return max(results, key=lambda result: sum(result.values()))


def _is_at(place: str, seen: Sequence[Seen]) -> bool:
  """Returns whether one thing is in a place, or two are so related."""
  first, *others = ((thing.x, thing.y) for thing in seen)
  if not others:
    return place == min(
      shapes.PLACES, key=lambda name: math.dist(first, *shapes.PLACES[name])
    )
  right, down = np.subtract(first, others[0])
  along = {
    'above': (-down, right),
    'below': (down, right),
    'to the left of': (-right, down),
    'to the right of': (right, down),
  }
  forward, sideways = along[place]
  return bool(forward > _STRAIGHT * abs(sideways))


def accuracies(
  images: Iterable[np.ndarray], captions: Sequence[str]
) -> dict[str, float]:
  """Returns the share of pictures that are right in each attribute.

  Args:
    images: uint8 [height, width, 3] each.
    captions: of each.

  Returns:
    'place', 'size', 'color' and 'shape', of all things that captions name, and
    'all': pictures in which nothing is wrong. Always in this order.

  Raises:
    ValueError: see `check`.
  """
  kinds: dict[str, list[bool]] = {name: [] for name in _KINDS}
  for result in map(check, images, captions):
    for name, right in result.items():
      kinds[name.partition('_')[0]].append(right)
    kinds['all'].append(all(result.values()))
  # Of captions without a size there is no share.
  return {name: float(np.mean(right)) for name, right in kinds.items() if right}
