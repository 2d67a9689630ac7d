"""What attention weights say: how far they reach, and where they lead.

Arrays in, numbers out: the functions take NumPy arrays, and JAX arrays inside
`jax.jit`, where the weights of a layer need not outlive it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any


def grid_distances(
  grid: tuple[int, int], spacing: tuple[float, float]
) -> np.ndarray:
  """Returns how far the patches of an image lie apart.

  Args:
    grid: rows and columns of patches.
    spacing: of rows and of columns, in pixels.

  Returns:
    Euclidean distances in pixels, float32 [patches, patches].
  """
  places = np.indices(grid).reshape(2, -1).T * np.asarray(spacing)
  apart = places[:, None] - places[None]
  return np.sqrt(np.square(apart).sum(-1)).astype(np.float32)


def mean_distance(
  weights: Array, distances: Array, counted: Array | None = None
) -> Array:
  """Returns how far a head attends, on average over the places that do.

  The distance of each pair of patches, weighted with the attention that one
  pays the other (ViT, arXiv:2010.11929, appendix D.7). The class token is
  nowhere, so it does not count: what a patch attends to among the patches
  sums up to one. Tokens of a text that do not count are left out likewise.

  Args:
    weights: [..., heads, tokens, tokens], from query to key; what has a place
      comes last.
    distances: [places, places], see `grid_distances`.
    counted: bool [..., places], which of them count; all if None.

  Returns:
    [..., heads], in the unit of the distances.
  """
  places = distances.shape[0]
  among = weights[..., -places:, -places:]
  if counted is None:
    return ((among * distances).sum(-1) / among.sum(-1)).mean(-1)
  queries = counted[..., None, :]
  among = among * queries[..., None, :]
  # One for those that do not count, which may attend to none that do.
  whole = among.sum(-1) + ~queries
  return ((among * distances).sum(-1) / whole).mean(-1, where=queries)


def rollout(layers: Sequence[Array], readers: Array) -> Array:
  """Follows attention back through all layers.

  Abnar & Zuidema, arXiv:2005.00928: of each layer the mean over heads is
  taken; half of every token comes through the residual connection, as itself.

  Args:
    layers: [batch, heads, tokens, tokens] each, the first layer first.
    readers: [batch or 1, ..., tokens], what each reader has of the output of
      each token; sums up to one.

  Returns:
    [batch, ..., tokens]: how much of each token of the input that is; sums up
    to one.
  """
  result = readers.reshape(len(readers), -1, readers.shape[-1])
  for weights in reversed(layers):
    mixing = weights.mean(1) + np.eye(weights.shape[-1], dtype=np.float32)
    result = result @ (mixing / mixing.sum(-1, keepdims=True))
  return result.reshape(-1, *readers.shape[1:])


def seen(weights: Array, patches: int) -> Array:
  """Returns how much each patch is attended to by what classifies the image.

  That is the class token where there is one, else the mean over all patches.

  Args:
    weights: [..., tokens, tokens], of a head.
    patches: their number; a class token comes before them.

  Returns:
    [..., patches]; 1 is what each would have if all had the same.
  """
  if weights.shape[-1] > patches:
    return evened(weights[..., 0, :], patches)
  return evened(weights.mean(-2), patches)


def evened(shares: Array, patches: int) -> Array:
  """Leaves a class token out, and makes shares 1 on average.

  Args:
    shares: [..., tokens]; patches come last.
    patches: their number.

  Returns:
    [..., patches].
  """
  shares = shares[..., -patches:]
  return shares / shares.mean(-1, keepdims=True)


def more_than_others(shares: Array) -> Array:
  """Returns where each word weighs more among all words than elsewhere.

  Places differ in how much they have of the whole text, and words in how much
  they weigh everywhere; neither counts.

  Args:
    shares: [words, ...], what each place has of each word.

  Returns:
    [words, ...]: of the words of a place, the part that each has, next to the
    mean of it over all places; 1 on average.
  """
  among = shares / shares.sum(0)
  places = tuple(range(1, shares.ndim))
  return among / among.mean(places, keepdims=True)
