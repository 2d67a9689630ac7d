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


def mean_distance(weights: Array, distances: Array) -> Array:
  """Returns how far a head attends, on average over the patches that do.

  The distance of each pair of patches, weighted with the attention that one
  pays the other (ViT, arXiv:2010.11929, appendix D.7). The class token is
  nowhere, so it does not count: what a patch attends to among the patches
  sums up to one.

  Args:
    weights: [..., tokens, tokens], from query to key; patches come last.
    distances: [patches, patches], see `grid_distances`.

  Returns:
    [...], in the unit of the distances.
  """
  patches = distances.shape[0]
  among = weights[..., -patches:, -patches:]
  reached = (among * distances).sum(-1) / among.sum(-1)
  return reached.mean(-1)


def rollout(layers: Sequence[Array]) -> Array:
  """Follows attention through all layers (Abnar & Zuidema, arXiv:2005.00928).

  Of each layer the mean over heads is taken; half of every token comes through
  the residual connection, as itself.

  Args:
    layers: [batch, heads, tokens, tokens] each, the first layer first.

  Returns:
    [batch, tokens, tokens]: how much of each token of the input is in each
    token of the output; rows sum up to one.
  """
  tokens = layers[0].shape[-1]
  result = np.eye(tokens, dtype=np.float32)[None]
  for weights in layers:
    mixing = weights.mean(1) + np.eye(tokens, dtype=np.float32)
    result = mixing / mixing.sum(-1, keepdims=True) @ result
  return result


def seen(weights: Array, patches: int) -> Array:
  """Returns how much each patch is attended to by what classifies the image.

  That is the class token where there is one, else the mean over all patches.

  Args:
    weights: [..., tokens, tokens], of a head or a rollout.
    patches: their number; a class token comes before them.

  Returns:
    [..., patches]; 1 is what each would have if all had the same.
  """
  if weights.shape[-1] > patches:
    shares = weights[..., 0, -patches:]
  else:
    shares = weights.mean(-2)
  return shares / shares.mean(-1, keepdims=True)
