"""Inception-v3 equals torch-fidelity's, from pictures to features and classes.

pip install -e .[interop] && pytest -m interop tests/interop
"""

import jax
import numpy as np
import pytest

from vit_jax.generation import feature_networks
from vit_jax.models import inception as model
from vit_jax.released import inception

torch = pytest.importorskip('torch')
torch_fidelity = pytest.importorskip('torch_fidelity')
pytestmark = pytest.mark.interop

FEATURES = ('2048', 'logits_unbiased')


def state_dict():
  """Returns noise for every tensor that leaves activations about as large."""
  rng, tensors = np.random.default_rng(0), {}
  for slot in inception.slots().values():
    noise, last = rng.normal(size=slot.shape), slot.name.rpartition('.')[2]
    if slot.name.endswith('conv.weight'):
      value = noise * (1.4 / np.prod(slot.shape[1:])) ** 0.5
    elif slot.name == 'fc.weight':
      value = noise * slot.shape[1] ** -0.5
    elif last == 'running_var':
      value = rng.uniform(0.3, 2, slot.shape)
    else:
      value = 0.2 * noise + (last == 'weight')
    tensors[slot.name] = torch.from_numpy(value.astype(np.float32))
    if last == 'running_var':
      counter = slot.name.replace(last, 'num_batches_tracked')
      tensors[counter] = torch.tensor(7)
  return tensors


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """The same weights as torch writes them now, and as it did before 1.6."""
  folder, tensors = tmp_path_factory.mktemp('weights'), state_dict()
  paths = folder / 'now.pth', folder / 'before.pth'
  torch.save(tensors, paths[0])
  torch.save(tensors, paths[1], _use_new_zipfile_serialization=False)
  return paths


# One that grows, and one that shrinks.
@pytest.mark.parametrize('which,shape', [(0, (48, 64)), (1, (400, 310))])
def test_features_and_classes(which, shape, files):
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
  images[1] = np.linspace(0, 255, shape[1])[:, None]  # Smooth.
  images[2] = images[2] // 64 + 100  # Nearly one colour.
  theirs = torch_fidelity.FeatureExtractorInceptionV3(
    'theirs', list(FEATURES), feature_extractor_weights_path=str(files[which])
  )
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = [x.numpy() for x in theirs(pixels)]
  logits = expected[1].astype(float)
  odds = np.exp(logits - logits.max(1, keepdims=True))
  odds /= odds.sum(1, keepdims=True)

  features, rows = feature_networks.of_path(files[which]).look(list(images))
  for name, found, wanted in (
    ('features', features, expected[0]),
    ('probabilities', np.log(rows), np.log(odds)),
  ):
    apart, size = np.abs(found - wanted).max(), wanted.std()
    print(f'{shape} {name}: {apart:.1e} apart, of size {size:.2f}')
    assert size > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4 * max(size, 1), rtol=0)


@pytest.mark.parametrize('shape', [(48, 64), (400, 310), (299, 299)])
def test_pictures_are_scaled_the_same(shape):
  interpolate = torch_fidelity.interpolate_compat_tensorflow
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
  theirs = interpolate.interpolate_bilinear_2d_like_tensorflow1x(
    pixels, size=(model.SIDE, model.SIDE), align_corners=False
  )
  expected = (theirs.numpy().transpose(0, 2, 3, 1) - 128) / 128
  found = jax.jit(model.prepare)(images)
  np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
