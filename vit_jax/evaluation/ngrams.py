"""Words from colours: a baseline that a model of images and texts has to beat.

As Visual N-Grams (Li et al., arXiv:1612.09161), images are mapped to the words
and phrases of their captions, but here by linear regression from a thumbnail
and a histogram of colours. So its figures say how far one gets on some data
without seeing any shape. It gives features of images and texts, which are
scored as those of any model are, by `retrieval` and `zero_shot`; `evaluate
--tasks=retrieval --baseline` does so beside a model.

The feature of a text has a place for each n-gram of the training captions: the
n-gram's rarity if the text has it, less the mean over the training captions.
That of an image is what regression expects of its captions.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

_WORD = re.compile(r'[^\W_]+')
# Of the thumbnail, and levels of each colour in the histogram.
_SIDE, _LEVELS = 8, 4
# Numbers that describe an image.
STATISTICS = 3 * _SIDE**2 + _LEVELS**3
# Images whose captions are counted at a time.
_ROWS = 1024


class Baseline(NamedTuple):
  """See `fit`.

  Attributes:
    places: of each n-gram.
    rarity: of each n-gram: the logarithm of the number of captions to one that
      has it.
    mean: of the training captions, [n-grams].
    offset: subtracted from the description of an image, [statistics].
    weights: [statistics, n-grams].
    longest: n-grams have 1 word to this many.
  """

  places: Mapping[tuple[str, ...], int]
  rarity: np.ndarray
  mean: np.ndarray
  offset: np.ndarray
  weights: np.ndarray
  longest: int

  def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns features, float32 [texts, n-grams]."""
    present = np.zeros((len(texts), len(self.places)), np.float32)
    for row, text in zip(present, texts):
      known = (self.places.get(x) for x in _ngrams(text, self.longest))
      row[[place for place in known if place is not None]] = 1
    return present * self.rarity - self.mean

  def encode_images(self, described: np.ndarray) -> np.ndarray:
    """Returns features, float32 [images, n-grams].

    Args:
      described: by `describe`, [images, statistics].
    """
    return (described - self.offset) @ self.weights


def describe(image: np.ndarray) -> np.ndarray:
  """Returns what the baseline sees of an image.

  Args:
    image: uint8 [height, width, 1 or 3].

  Returns:
    The 8 x 8 pixels that it is scaled to, and the shares of its pixels in each
    of 4 x 4 x 4 boxes of colours, float32 [STATISTICS], each from 0 to 1.
  """
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(
      f'an image is {image.dtype} {image.shape}, expected uint8 [height, '
      'width, 1 or 3]'
    )
  if image.shape[2] == 1:
    image = np.repeat(image, 3, axis=2)
  small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  levels = image.reshape(-1, 3) // (256 // _LEVELS)
  box = levels @ np.array([_LEVELS**2, _LEVELS, 1])
  shares = np.bincount(box, minlength=_LEVELS**3) / len(box)
  return np.concatenate([small.ravel() / 255, shares]).astype(np.float32)


def fit(
  described: np.ndarray,
  captions: Sequence[Sequence[str]],
  *,
  longest: int = 2,
  most: int = 5000,
  l2: float = 0.1,
) -> Baseline:
  """Learns the regression from images to n-grams.

  Args:
    described: images by `describe`, [images, statistics].
    captions: one or more of each image.
    longest: n-grams have 1 word to this many.
    most: n-grams to know; those that the most captions have, two at least.
    l2: strength of the regularisation, for each image and with statistics of
      unit deviation.

  Raises:
    ValueError: an image has no caption, or no n-gram occurs twice.
  """
  texts = [text for several in captions for text in several]
  count = collections.Counter(
    ngram for text in texts for ngram in _ngrams(text, longest)
  )
  # Of equally frequent ones the first in the alphabet, whatever the order.
  frequent = sorted(count, key=lambda x: (-count[x], x))[:most]
  frequent = [ngram for ngram in frequent if count[ngram] > 1]
  if len(described) != len(captions) or not all(captions) or not frequent:
    raise ValueError(
      f'{len(described)} images and captions of {len(captions)} have '
      f'{len(frequent)} n-grams that occur twice; expected one or more '
      'captions for each image, and some such n-grams'
    )
  counts = np.array([count[ngram] for ngram in frequent])
  rarity = np.log(len(texts) / counts).astype(np.float32)
  blank = Baseline(
    {ngram: place for place, ngram in enumerate(frequent)},
    rarity,
    mean=rarity * (counts / len(texts)).astype(np.float32),
    offset=described.mean(axis=0),
    weights=np.zeros(0),
    longest=longest,
  )
  deviation = described.std(axis=0) + 1e-5
  x = (described - blank.offset) / deviation
  weights = np.linalg.solve(
    x.T @ x + l2 * len(x) * np.eye(x.shape[1], dtype=x.dtype),
    _products(x, captions, blank.encode_texts),
  )
  return blank._replace(weights=weights / deviation[:, None])


def _products(
  x: np.ndarray, captions: Sequence[Sequence[str]], encode_texts: Callable
) -> np.ndarray:
  """Returns X'Y, of Y [images, n-grams] only some rows at a time."""
  total = 0
  for start in range(0, len(x), _ROWS):
    rows = slice(start, start + _ROWS)
    y = np.stack([encode_texts(texts).mean(axis=0) for texts in captions[rows]])
    total = total + x[rows].T @ y
  return total


def _ngrams(text: str, longest: int) -> Iterator[tuple[str, ...]]:
  """Yields each n-gram of a text once."""
  words = _WORD.findall(text.lower())
  yield from {
    tuple(words[start : start + length])
    for length in range(1, longest + 1)
    for start in range(len(words) - length + 1)
  }
