"""Finding images by text and text by image, counted honestly.

An image may have several texts. It is found by any of them; a text finds its
image if *any* of its texts ranks high enough, as is usual (Karpathy & Fei-Fei,
arXiv:1412.2306).

Ties are broken at random, and the figures are expectations over that: a share
of a hit counts. So a model that gives everything the same score does as well
as chance; if ties counted as hits it would be perfect, and if they counted as
misses, data with the same picture or caption twice could not be found in it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RECALLS = (1, 5, 10)
# Scores that are computed at a time; 8 bytes each, and some masks.
_SCORES = 2**22
# Scores as near as this are equal: the same vectors differ by rounding.
_EQUAL = 1e-9


class Ranks(NamedTuple):
  """Where the first right candidate of each query is; int [queries] each.

  Attributes:
    better: wrong candidates that score higher.
    right: right candidates with this score, 1 or more.
    wrong: wrong candidates with this score.
  """

  better: np.ndarray
  right: np.ndarray
  wrong: np.ndarray


class Direction(NamedTuple):
  """How well the queries of one direction find what belongs to them.

  Attributes:
    recalls: share of the queries for which something right is among the first
      1, 5 and 10, by that number.
    median_rank: over queries, of the mean rank that the first right candidate
      has over the orders of ties; the best is 1.
    queries: how many.
    candidates: how many each query chooses from.
  """

  recalls: dict[int, float]
  median_rank: float
  queries: int
  candidates: int


class Result(NamedTuple):
  """Both directions."""

  image_to_text: Direction
  text_to_image: Direction


def unit(features: np.ndarray) -> np.ndarray:
  """Returns vectors [n, width] of unit length, in float64.

  Raises:
    ValueError: some are not finite, or all zero.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not len(features):
    raise ValueError(
      f'features are of the shape {features.shape}, expected [n, width] with '
      'n 1 or more'
    )
  length = np.linalg.norm(features, axis=1, keepdims=True)
  wrong = ~(np.isfinite(length) & (length > 0))[:, 0]
  if wrong.any():
    raise ValueError(
      f'{wrong.sum()} of {len(wrong)} features have no direction: they are 0 '
      f'or not finite, the first in row {wrong.argmax()}'
    )
  return features / length


def ranks(
  queries: np.ndarray,
  candidates: np.ndarray,
  query_of: np.ndarray,
  candidate_of: np.ndarray,
) -> Ranks:
  """Ranks candidates by their cosine with each query.

  Only some rows of the table of scores exist at a time.

  Args:
    queries: [queries, width].
    candidates: [candidates, width].
    query_of: int [queries], what each query belongs to.
    candidate_of: int [candidates]; right are those that belong to the same.

  Raises:
    ValueError: a query has no right candidate, or numbers differ.
  """
  queries, candidates = unit(queries), unit(candidates)
  return _ranks(
    lambda rows: queries[rows] @ candidates.T,
    (len(queries), len(candidates)),
    query_of,
    candidate_of,
  )


def ranks_of_scores(
  scores: np.ndarray, query_of: np.ndarray, candidate_of: np.ndarray
) -> Ranks:
  """Ranks candidates by scores that are known; otherwise as `ranks`.

  Args:
    scores: [queries, candidates]; the largest is the best.
    query_of: see `ranks`.
    candidate_of: see `ranks`.

  Raises:
    ValueError: a score is not finite, or as in `ranks`.
  """
  scores = np.asarray(scores, np.float64)
  if not np.isfinite(scores).all():
    raise ValueError(
      f'{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite'
    )
  return _ranks(lambda rows: scores[rows], scores.shape, query_of, candidate_of)


def _ranks(
  scores_of: Callable[[slice], np.ndarray],
  shape: tuple[int, int],
  query_of: np.ndarray,
  candidate_of: np.ndarray,
) -> Ranks:
  """Ranks by what gives the scores of some queries, [rows, candidates]."""
  query_of, candidate_of = np.asarray(query_of), np.asarray(candidate_of)
  if (len(query_of), len(candidate_of)) != shape:
    raise ValueError(
      f'{shape[0]} queries and {shape[1]} candidates belong to '
      f'{len(query_of)} and {len(candidate_of)} things: one each is expected'
    )
  if not (found := np.isin(query_of, candidate_of)).all():
    raise ValueError(
      f'{(~found).sum()} of {len(found)} queries have no right candidate, the '
      f'first is number {found.argmin()}'
    )
  rows = max(1, _SCORES // shape[1])
  parts = []
  for start in range(0, shape[0], rows):
    scores = scores_of(slice(start, start + rows))
    right = query_of[start : start + rows, None] == candidate_of
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    equal = np.abs(scores - best) <= _EQUAL
    counted = ((scores > best) & ~equal, equal & right, equal & ~right)
    parts.append([mask.sum(axis=1) for mask in counted])
  return Ranks(*(np.concatenate(part) for part in zip(*parts)))


def hits(found: Ranks, k: int) -> np.ndarray:
  """Returns the chance of something right among the first k, [queries]."""
  missed = np.ones(len(found.better))
  # Drawn from those that tie, one after the other, and each time a wrong one.
  for drawn in range(k):
    in_reach = found.better + drawn < k
    left = np.maximum(found.right + found.wrong - drawn, 1)
    chance = np.maximum(found.wrong - drawn, 0) / left
    missed = np.where(in_reach, missed * chance, missed)
  return 1 - missed


def expected_rank(found: Ranks) -> np.ndarray:
  """Returns the mean rank of the first right candidate; the best is 1."""
  return found.better + (found.right + found.wrong + 1) / (found.right + 1)


def evaluate(
  images: np.ndarray,
  texts: np.ndarray,
  text_of: Sequence[int],
  image_of: Sequence[int] | None = None,
) -> Result:
  """Scores retrieval in both directions.

  Args:
    images: features [images, width], of any length.
    texts: features [texts, width].
    text_of: int [texts], which image each text belongs to.
    image_of: int [images], the number by which `text_of` means an image; its
      row by default. Images with the same number share their texts, so that
      each of them is right for these.

  Raises:
    ValueError: an image has no text or a text no image, or features are not
      finite.
  """
  if image_of is None:
    image_of = np.arange(len(images))
  return Result(
    _direction(ranks(images, texts, image_of, text_of), len(texts)),
    _direction(ranks(texts, images, text_of, image_of), len(images)),
  )


def evaluate_scores(
  scores: np.ndarray, text_of: Sequence[int], image_of: Sequence[int]
) -> Result:
  """Scores retrieval by a table [images, texts]; otherwise as `evaluate`."""
  images, texts = scores.shape
  return Result(
    _direction(ranks_of_scores(scores, image_of, text_of), texts),
    _direction(ranks_of_scores(scores.T, text_of, image_of), images),
  )


def chance(text_of: Sequence[int], image_of: Sequence[int]) -> Result:
  """Returns what guessing gives: see `evaluate`."""

  def direction(query_of: Sequence[int], candidate_of: Sequence[int]):
    group, count = np.unique(candidate_of, return_counts=True)
    right = count[np.searchsorted(group, query_of)]
    wrong = len(candidate_of) - right
    return _direction(Ranks(0 * right, right, wrong), len(candidate_of))

  return Result(direction(image_of, text_of), direction(text_of, image_of))


def _direction(found: Ranks, candidates: int) -> Direction:
  return Direction(
    {k: float(hits(found, k).mean()) for k in RECALLS},
    float(np.median(expected_rank(found))),
    len(found.better),
    candidates,
  )


def figures(result: Result, group: str = 'retrieval') -> dict[str, float]:
  """Returns a result by the names that it has among a run's metrics.

  Args:
    result: of a model, or of a baseline.
    group: that the names begin with.
  """
  values = {}
  for name, direction in result._asdict().items():
    for k, recall in direction.recalls.items():
      values[f'{group}/{name}_recall_{k}'] = recall
    values[f'{group}/{name}_median_rank'] = direction.median_rank
  return values
