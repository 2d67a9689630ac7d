"""How a classifier of ImageNet does on pictures that nobody corrupted.

Other photographs, drawings and hard cases of the same classes, which is the
robustness that CLIP's paper reports (Radford et al., arXiv:2103.00020, section
3.3). TensorFlow Datasets has all of these; ObjectNet it has not.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.evaluation import zero_shot

_CLASSES = 1000


class Variant(NamedTuple):
  """Test data for classifiers of ImageNet, labelled as ImageNet is.

  Attributes:
    source: as in `config.data.test.source`.
    split: of it.
    classes: how many of the 1,000 occur; a classifier chooses among these.
    paper: that describes it, at arXiv.
  """

  source: str
  split: str
  classes: int
  paper: str


VARIANTS = {
  'imagenet': Variant('tfds:imagenet2012', 'validation', 1000, '1409.0575'),
  'imagenet_v2': Variant(
    'tfds:imagenet_v2/matched-frequency', 'test', 1000, '1902.10811'
  ),
  'imagenet_a': Variant('tfds:imagenet_a', 'test', 200, '1907.07174'),
  'imagenet_r': Variant('tfds:imagenet_r', 'test', 200, '2006.16241'),
  'imagenet_sketch': Variant(
    'tfds:imagenet_sketch', 'test', 1000, '1905.13549'
  ),
}


def chosen(names: Sequence[str]) -> dict[str, Variant]:
  """Returns some of VARIANTS; ConfigError if there is no such one."""
  for name in names:
    if name not in VARIANTS:
      raise ConfigError(
        f'{name!r} is no variant of ImageNet.{did_you_mean(name, VARIANTS)}'
      )
  return {name: VARIANTS[name] for name in names}


def check_class_names(class_names: Sequence[str], where: str) -> None:
  """Raises ConfigError unless labels are places among ImageNet's 1,000.

  TensorFlow Datasets calls the classes by their WordNet ids, in ascending
  order, of all variants: also where a label never occurs.

  Args:
    class_names: of the data, by label.
    where: the data is, for messages.
  """
  ids = all(re.fullmatch(r'n\d{8}', name) for name in class_names)
  if (
    len(class_names) != _CLASSES
    or not ids
    or [*class_names] != sorted({*class_names})
  ):
    raise ConfigError(
      f'{where} has {len(class_names)} classes ({", ".join(class_names[:3])}, '
      f'...), expected the {_CLASSES:,} WordNet ids of ImageNet in ascending '
      'order, so that it is known which class a label means. Prepare the data '
      'by TensorFlow Datasets.'
    )


def among(labels: Sequence[int], variant: Variant, where: str) -> list[int]:
  """Returns the classes that a classifier is to choose from, ascending.

  Which they are, the labels say, of which there is at least one of each.

  Args:
    labels: of all images.
    variant: that they are of.
    where: the data is, for messages.

  Raises:
    ConfigError: there are more or fewer classes than in the paper.
  """
  found = np.unique(labels)
  if len(found) != variant.classes:
    raise ConfigError(
      f'{where} has images of {len(found)} classes, but {variant.classes} are '
      f'in arXiv:{variant.paper}; the accuracy would be another. Is it whole?'
    )
  return found.tolist()


def figures(results: Mapping[str, zero_shot.Result]) -> dict[str, float]:
  """Returns results by the names that they have among a run's metrics."""
  return {f'robustness/{name}': x.top_1 for name, x in results.items()}
