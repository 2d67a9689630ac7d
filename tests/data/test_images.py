"""Decoding whole images or none, and transforms against values by hand."""

import io
import pathlib
import tarfile

import cv2
import numpy as np
import pytest
from PIL import Image

from vit_jax.data import images, jpeg, square_crop

SHARED_DATA = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'


def encode(image, form='JPEG', **options):
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, form, **options)
  return buffer.getvalue()


def photo(height=96, width=128):
  """A smooth picture that JPEG keeps nearly unchanged; no symmetry."""
  rows = np.linspace(0, 1, height)[:, None]
  columns = np.linspace(0, 1, width)[None]
  channels = [200 * rows + 0 * columns, 220 * columns + 0 * rows]
  channels.append(120 * rows * columns + 60)
  return np.stack(channels, axis=-1).astype(np.uint8)


def exif(orientation):
  block = Image.Exif()
  block[0x0112] = orientation
  return block


def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
@pytest.mark.parametrize(
  'orientation, undo',
  [
    (3, lambda x: x[::-1, ::-1]),
    (6, lambda x: np.rot90(x, -1)),
    (8, lambda x: np.rot90(x)),
  ],
)
def test_exif_rotation_is_applied(form, orientation, undo):
  data = encode(photo(), form, exif=exif(orientation))
  decoded = images.decode(data).astype(int)
  assert np.abs(decoded - undo(photo())).max() < 12


def test_transparency_is_put_on_white_and_16_bits_are_halved():
  rgba = np.zeros((2, 2, 4), np.uint8)
  rgba[0] = [255, 0, 0, 255]
  decoded = images.decode(encode(rgba, 'PNG'))
  np.testing.assert_array_equal(decoded[:, 0], [[255, 0, 0], [255, 255, 255]])
  grey = np.array([[0, 256, 65535]], np.uint16)
  decoded = images.decode(encode(grey, 'PNG'))
  np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 255])
  assert decoded.shape == (1, 3, 3)


def test_grey_and_cmyk_jpeg_become_rgb():
  grey = np.full((16, 16), 90, np.uint8)
  np.testing.assert_array_equal(images.decode(encode(grey)), 90)
  buffer = io.BytesIO()
  Image.fromarray(photo()).convert('CMYK').save(buffer, 'JPEG', quality=95)
  decoded = images.decode(buffer.getvalue()).astype(int)
  assert np.abs(decoded - photo()).max() < 16


@pytest.mark.parametrize('progressive', [False, True])
def test_cut_off_jpeg_is_an_error_wherever_it_is_cut(progressive):
  # The thumbnail's own end marker must not pass for the end of the file.
  block = exif(1)
  block[0x9286] = encode(photo(8, 8))
  data = encode(photo(), progressive=progressive, exif=block)
  assert images.decode(data).shape == (96, 128, 3)
  assert images.decode(data + b'trailing bytes').shape == (96, 128, 3)
  for end in range(2, len(data) - 1, 37):
    # Not left to OpenCV, of which only some versions notice.
    with pytest.raises(ValueError, match='cut off|no frame'):
      jpeg.read_header(data[:end])
    with pytest.raises(images.DecodeError):
      images.decode(data[:end])
    with pytest.raises(images.DecodeError):
      images.decode(data[:end] + bytes(len(data) - end))


@pytest.mark.parametrize('form', ['PNG', 'WEBP', 'GIF', 'BMP'])
def test_cut_off_files_of_other_formats_are_errors(form):
  data = encode(photo(), form)
  with pytest.raises(images.DecodeError):
    images.decode(data[: len(data) // 2])


def test_what_is_no_image_is_an_error_and_bombs_do_no_harm():
  for data in (b'', b'\xff\xd8', b'<html>not found</html>', bytes(1000)):
    with pytest.raises(images.DecodeError):
      images.decode(data)
  bomb = bytearray(encode(photo()))
  frame = bomb.index(b'\xff\xc0')
  bomb[frame + 5 : frame + 9] = b'\xff\xff\xff\xff'
  with pytest.raises(images.DecodeError, match='limit'):
    images.decode(bytes(bomb))
  bomb[frame + 5 : frame + 9] = b'\0\0\0\x10'
  with pytest.raises(images.DecodeError, match='0x16'):
    images.inception_crop(8).from_file(bytes(bomb), rng())
  wide = Image.new('1', (20_000, 20_000))
  buffer = io.BytesIO()
  wide.save(buffer, 'PNG')
  with pytest.raises(images.DecodeError, match='Bomb'):
    images.decode(buffer.getvalue())


def test_jpeg_photos_decode_as_pillow_decodes_them():
  archive = SHARED_DATA / 'coco-cc-mini.tar.gz'
  if not archive.exists():
    pytest.skip(f'no photos in {archive}')
  with tarfile.open(archive) as tar:
    members = [m for m in tar.getmembers() if m.name.endswith('.jpg')][:5]
    for member in members:
      data = tar.extractfile(member).read()
      expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
      difference = np.abs(images.decode(data).astype(int) - expected)
      assert difference.mean() < 0.5


def test_inception_crop_boxes_have_the_drawn_area_and_aspect():
  crop = images.inception_crop(32, area_min=0.2, area_max=0.5)
  generator = rng()
  boxes = np.array([crop.box(300, 400, generator) for _ in range(500)])
  top, left, height, width = boxes.T
  assert (top >= 0).all() and (top + height <= 300).all()
  assert (left >= 0).all() and (left + width <= 400).all()
  area, aspect = height * width / 120_000, width / height
  assert 0.19 < area.min() < 0.21 and 0.49 < area.max() < 0.51
  assert 0.74 < aspect.min() < 0.77 and 1.30 < aspect.max() < 1.35
  # Half of the boxes are wider than high, as on a logarithmic scale.
  assert abs((aspect > 1).mean() - 0.5) < 0.08
  # Nothing fits in a thin strip: the central box of the nearest shape.
  assert crop.box(90, 1000, generator) == (0, 440, 90, 120)


def test_resize_is_bilinear_and_keeps_a_single_channel():
  image = photo()
  # Output pixel 0 is the mean of the input pixels 1 and 2 in each direction.
  out = images.resize((24, 32))(image, None)
  expected = image[1:3, 1:3].reshape(4, 3).mean(axis=0)
  assert np.abs(out[0, 0] - expected).max() <= 1
  grey = image[:, :, :1]
  assert images.resize((24, 32))(grey, None).shape == (24, 32, 1)
  assert images.inception_crop(9)(grey, rng()).shape == (9, 9, 1)


@pytest.mark.parametrize('orientation', [1, 6])
@pytest.mark.parametrize('size', [224, 60])
def test_crop_of_a_file_is_the_crop_of_the_decoded_image(orientation, size):
  """Also where the JPEG is decoded at a half or a quarter of its size."""
  data = encode(photo(500, 700), quality=95, exif=exif(orientation))
  crop = images.inception_crop(size)
  for seed in range(10):
    fast = crop.from_file(data, np.random.default_rng(seed)).astype(int)
    full = crop(images.decode(data), np.random.default_rng(seed))
    assert fast.shape == (size, size, 3)
    assert np.abs(fast - full).max() < 10 and np.abs(fast - full).mean() < 2


def test_crop_decodes_no_more_than_it_needs(monkeypatch):
  reductions = []
  decode = images.decode
  monkeypatch.setattr(
    images,
    'decode',
    lambda data, reduction=1: (
      reductions.append(reduction) or decode(data, reduction)
    ),
  )
  data = encode(photo(480, 640))
  for size in (320, 240, 239, 120, 60):
    images.inception_crop(size, area_min=1).from_file(data, rng())
  # A crop is 480 high: at size 320 it must not be halved.
  assert reductions == [1, 2, 2, 4, 8]


def test_random_crop_reaches_every_place_and_pads_with_black():
  image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
  crop, generator = images.random_crop(2), rng()
  corners = {int(crop(image, generator)[0, 0, 0]) for _ in range(200)}
  assert corners == {1, 2, 3, 5, 6, 7}
  padded = images.random_crop((3, 4), padding=1)
  outs = [padded(image, generator) for _ in range(200)]
  assert all(out.shape == (3, 4, 1) for out in outs)
  assert {int(out[1, 1, 0]) for out in outs} == {1, 2, 3, 5, 6, 7, 9, 10, 11}
  assert min(int(out[0, 0, 0]) for out in outs) == 0


def test_square_crop_is_that_of_the_paper():
  # The value of a pixel says where it was: by rows, then by columns.
  rows, columns = np.mgrid[:60, :100].astype(np.uint8)
  image = np.stack([rows, columns], 2)[..., [0, 1, 1]]
  near_centre = square_crop.square_crop(40, 40, 50, 0.375, 0.625)
  anywhere = square_crop.square_crop(40, 40, 90)
  rng = np.random.default_rng(0)
  middles, spans = [], []
  for _ in range(200):
    out = near_centre(image, rng).astype(float)
    assert out.shape == (40, 40, 3)
    spans.append(np.ptp(out[..., 0]) + 1)
    # The square of 60 begins at 15 to 25, and 40 of 40 to 50 are left.
    assert out[..., 1].min() >= 15 and out[..., 1].max() < 85
    middles.append(anywhere(image, rng)[..., 1].mean())
  # Of 60 pixels 40 parts in 40 to 50 remain.
  assert 46 < min(spans) < 50 and 58 < max(spans) <= 60
  assert min(middles) < 27 and max(middles) > 72
  # It is never enlarged: the scaled square has 60 pixels at most.
  assert min(np.ptp(anywhere(image, rng)[..., 0]) for _ in range(99)) >= 38
  # Nor up to the smallest side: every pixel of a crop is one of the image.
  for _ in range(9):
    out = square_crop.square_crop(40, 70, 90)(image, rng)
    top, left = out[0, 0, :2]
    np.testing.assert_array_equal(out, image[top : top + 40, left : left + 40])
  # Only what has fewer pixels than the crop is, and then to all of that.
  out = square_crop.square_crop(80, 90, 99)(image, rng)
  assert out.shape == (80, 80, 3) and np.ptp(out[..., 0]) == 59
  for sizes in ((40, 30, 50), (40, 50, 45), (40, 40, 50, 0.6, 0.4)):
    with pytest.raises(ValueError, match='expected'):
      square_crop.square_crop(*sizes)


def test_flip_mirrors_every_second_image():
  image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
  flip, generator = images.flip_lr(), rng()
  outs = [flip(image, generator)[:, :, 0].tolist() for _ in range(400)]
  flipped = outs.count([[2, 1, 0], [5, 4, 3]])
  assert flipped + outs.count([[0, 1, 2], [3, 4, 5]]) == 400
  assert 160 < flipped < 240


def test_resize_small_averages_areas_and_keeps_the_aspect_ratio():
  image = np.zeros((3, 6, 1), np.uint8)
  image[0, 0], image[0, 5] = 90, 180
  third = images.resize_small(1)(image, None)
  np.testing.assert_array_equal(third[:, :, 0], [[10, 20]])
  tall = np.zeros((300, 201, 3), np.uint8)
  assert images.resize_small(100)(tall, None).shape == (149, 100, 3)
  assert images.resize_small(402)(tall, None).shape == (600, 402, 3)


def test_central_crop_value_range_and_to_rgb():
  image = np.arange(20, dtype=np.uint8).reshape(4, 5, 1)
  cut = images.central_crop((2, 3))(image, None)
  np.testing.assert_array_equal(cut[:, :, 0], [[6, 7, 8], [11, 12, 13]])
  scaled = images.value_range(-1, 1)(np.uint8([[[0], [51], [255]]]), None)
  assert scaled.dtype == np.float32 and scaled.shape == (1, 3, 1)
  np.testing.assert_array_equal(scaled[0, :, 0], np.float32([-1, -0.6, 1]))
  # A cut-out is a view with gaps between its rows.
  assert images.value_range(0, 255)(cut, None)[1, 0, 0] == 11
  rgb = images.to_rgb()(image, None)
  assert rgb.shape == (4, 5, 3) and (rgb == image).all()
  assert images.to_rgb()(rgb, None).shape == (4, 5, 3)


@pytest.mark.parametrize('shape', [(41, 68, 3), (90, 50, 1), (20, 30, 3)])
def test_bicubic_is_that_of_pillow(shape):
  image = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
  picture = Image.fromarray(image[:, :, 0] if shape[2] == 1 else image)

  def expected(height, width):
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled).reshape(height, width, shape[2])

  out = images.resize((24, 31), 'bicubic')(image, None)
  np.testing.assert_array_equal(out, expected(24, 31))
  # The longer side is cut off, not rounded: 39.8, 43.2 and 36.
  longer = {41: (24, 39), 90: (43, 24), 20: (24, 36)}[shape[0]]
  out = images.resize_small(24, 'bicubic')(image, None)
  np.testing.assert_array_equal(out, expected(*longer))
  crop = images.inception_crop(9, area_min=0.5, method='bicubic')
  top, left, height, width = crop.box(*shape[:2], rng())
  box = picture.crop((left, top, left + width, top + height))
  box = box.resize((9, 9), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(
    crop(image, rng()), np.asarray(box).reshape(9, 9, shape[2])
  )


def test_methods_of_scaling_differ_as_they_should():
  image = np.zeros((8, 8, 1), np.uint8)
  image[3:5, 3:5] = 255
  quarter = {
    method: images.resize(2, method)(image, None)[0, 0, 0]
    for method in ('bilinear', 'area', 'bicubic')
  }
  # Bilinear looks at rows 1 and 2 alone; a 16th of the area is white.
  assert quarter['bilinear'] == 0 and quarter['area'] == 16
  assert quarter['bicubic'] > 16
  with pytest.raises(ValueError, match="'cubic', expected one of bilinear"):
    images.resize_small(8, 'cubic')
  with pytest.raises(ValueError, match='put it before value_range'):
    images.resize(2, 'bicubic')(image.astype(np.float32), None)


def test_standardize_by_channel():
  mean, deviation = (0.48, 0.46, 0.4), (0.27, 0.26, 0.25)
  image = np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8)
  out = images.standardize(mean, deviation)(image[:, 1:], None)
  expected = (image[:, 1:] / 255 - mean) / deviation
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
  grey = images.standardize(0.5, 0.25)(image[:, :, :1], None)
  np.testing.assert_allclose(
    grey, (image[:, :, :1] / 255 - 0.5) / 0.25, rtol=0, atol=1e-6
  )
  with pytest.raises(ValueError, match='3 channels, but an image has 1'):
    images.standardize(mean, deviation)(image[:, :, :1], None)
  with pytest.raises(ValueError, match='divide both by 255'):
    images.standardize((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
  with pytest.raises(ValueError, match='one for each of 3 channels'):
    images.standardize((0.5, 0.5), 0.5)


def test_too_small_images_and_wrong_sizes_are_explained():
  small = np.zeros((10, 12, 3), np.uint8)
  for crop in (images.random_crop(11), images.central_crop(11)):
    with pytest.raises(
      ValueError, match='10x12 is smaller than the crop of 11'
    ):
      crop(small, rng())
  for size in (0, -1, 2.5, (1, 2, 3), '224'):
    with pytest.raises(ValueError, match='size is a positive int'):
      images.resize(size)
  with pytest.raises(ValueError, match='5% is 0.05'):
    images.inception_crop(224, area_min=5, area_max=100)


def test_opencv_leaves_parallelism_to_the_pipeline():
  assert cv2.getNumThreads() <= 1
