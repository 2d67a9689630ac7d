"""Which images are shown, and how they look."""

import numpy as np
import pytest
from PIL import Image

from vit_jax.analysis import examples
from vit_jax.config import ConfigError


def test_images_of_the_run_are_shown_as_they_were(open_vit):
  model, said = open_vit(), []
  few, many = (
    examples.read(model, None, number, lambda *x: said.append(x))
    for number in (3, 7)
  )
  assert few.names == many.names[:3] and len(set(many.names)) == 7
  assert many.first(3).names == few.names
  np.testing.assert_array_equal(few.inputs, many.first(3).inputs)
  # Prepared as -2 to 1.
  expected = np.repeat((few.inputs + 2) / 3, 3, axis=-1)
  np.testing.assert_allclose(few.pixels, expected, atol=1e-6)
  assert few.pixels.min() >= 0 and 0.9 < few.pixels.max() <= 1
  assert not said


def test_images_of_a_folder_without_those_that_cannot_be_read(
  open_vit, tmp_path
):
  said = []
  (tmp_path / 'broken.png').write_text('no image')
  with pytest.raises(
    ConfigError, match='can be used. broken.png: not an image'
  ):
    examples.read(open_vit(), tmp_path, 9, said.append)
  (tmp_path / 'below').mkdir()
  Image.new('RGB', (30, 20), (255, 0, 0)).save(tmp_path / 'below' / 'red.png')
  found = examples.read(open_vit(), tmp_path, 9, lambda *x: said.append(x[0]))
  assert found.names == ('below/red.png',) and said == ['broken.png']
  np.testing.assert_allclose(found.pixels, 0.299, atol=1e-6)  # Luminance.


def test_images_that_are_not_there(open_vit, tmp_path):
  for folder, message in (
    (tmp_path, 'no image file in this folder'),
    (None, 'comes without data: name a folder'),
  ):
    with pytest.raises(ConfigError, match=message):
      examples.read(open_vit(source=''), folder, 1, print)
