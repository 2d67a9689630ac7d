"""What embeddings say: of patches, of positions and of whole images."""

import numpy as np


def principal_filters(
  kernel: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the patterns that the filters of a first layer are made of.

  They are the principal components of the filters (ViT, arXiv:2010.11929,
  figure 7). A component means the same as its negative: here the largest of
  its weights is positive.

  Args:
    kernel: [height, width, channels, filters].
    number: of components; fewer if there are no more.

  Returns:
    Components of length 1, [n, height, width, channels], those that explain
    most first; and the share of the variance that each explains, [n].
  """
  shape = kernel.shape[:-1]
  filters = kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)
  _, values, components = np.linalg.svd(
    filters - filters.mean(0), full_matrices=False
  )
  largest = np.abs(components).argmax(1)[:, None]
  components *= np.sign(np.take_along_axis(components, largest, axis=1))
  shares = np.square(values) / np.square(values).sum()
  return components[:number].reshape(-1, *shape), shares[:number]


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the cosine of each of `a` with each of `b`.

  Args:
    a: [..., n, width].
    b: [..., m, width].

  Returns:
    [..., n, m]; 0 for a vector of zeros.
  """

  def unit(x):
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.maximum(length, np.finfo(np.float32).tiny)

  return unit(a) @ np.swapaxes(unit(b), -1, -2)


def nearest(
  features: np.ndarray, queries: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the images that are most like the first ones.

  Args:
    features: [images, width].
    queries: how many images, from the first, to find others for.
    number: of others for each; fewer if there are no more.

  Returns:
    Which images they are, int [queries, number], the nearest first, and their
    cosine similarities.
  """
  similarity = cosine_similarity(features[:queries], features)
  np.fill_diagonal(similarity, -np.inf)
  number = min(number, len(features) - 1)
  order = np.argsort(-similarity, axis=1, kind='stable')[:, :number]
  return order, np.take_along_axis(similarity, order, axis=1)


def as_colours(features: np.ndarray) -> np.ndarray:
  """Shows features as colours: what is alike gets a like colour.

  Red, green and blue are their first three principal components, over all
  that is given together. A percent at either end is cut off, so that a few
  features that stand out leave colours to the others.

  Args:
    features: [..., width], of width 3 or more.

  Returns:
    [..., 3], from 0 to 1.
  """
  flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
  flat = flat - flat.mean(0)
  # Of the small matrix: there are many more features than their width.
  _, vectors = np.linalg.eigh(flat.T @ flat)
  components = vectors[:, -3:][:, ::-1]
  largest = np.abs(components).argmax(0)[None]
  components = components * np.sign(
    np.take_along_axis(components, largest, axis=0)
  )
  values = flat @ components
  low, high = np.percentile(values, (1, 99), axis=0)
  values = (values - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
  return values.clip(0, 1).reshape(*features.shape[:-1], 3)
