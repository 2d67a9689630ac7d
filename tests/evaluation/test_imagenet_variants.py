"""Which classes the labels of ImageNet's variants mean."""

import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.evaluation import imagenet_variants, zero_shot

IDS = [f'n{number:08}' for number in range(1000)]


def test_they_are_known_to_tensorflow_datasets():
  tfds = pytest.importorskip('tensorflow_datasets')
  for variant in imagenet_variants.VARIANTS.values():
    name, _, config = variant.source.removeprefix('tfds:').partition('/')
    builder = tfds.builder_cls(name)
    assert not config or config in builder.builder_configs
  with pytest.raises(ConfigError, match="mean 'imagenet_v2'"):
    imagenet_variants.chosen(['imagenet_a', 'imagenet_v3'])


@pytest.mark.parametrize(
  'names',
  [IDS[::-1], IDS[:200], [*IDS[:-1], 'wolf'], [*IDS[:-1], IDS[-2]]],
)
def test_labels_without_a_known_class_are_refused(names):
  imagenet_variants.check_class_names(IDS, 'a')
  with pytest.raises(ConfigError, match='b has .* WordNet ids'):
    imagenet_variants.check_class_names(names, 'b')


def test_only_the_classes_that_occur_are_chosen_from():
  variant = imagenet_variants.VARIANTS['imagenet_a']
  labels = np.repeat(np.arange(999, -1, -5), 3)
  among = imagenet_variants.among(labels, variant, 'a')
  assert among == list(range(4, 1000, 5))
  with pytest.raises(ConfigError, match='199 classes, but 200 are in arXiv:19'):
    imagenet_variants.among(labels[3:], variant, 'a')


def test_figures_are_accuracies():
  result = zero_shot.Result(0.5, 0.9, 0.4, 10, 200)
  found = imagenet_variants.figures({'imagenet_a': result})
  assert found == {'robustness/imagenet_a': 0.5}
