"""Scenes are what their captions say; what is held out is never drawn."""

import pickle

import numpy as np
import pytest

from vit_jax.data import shapes


def open_split(split, argument='objects=1'):
  return shapes.shapes(argument)[split]()


def look(image):
  """What one thing on white is, from its pixels: colour, shape, size, centre.

  Edges are mixed with white, so only pixels near a colour count, and the shape
  is told by the share of its box that each quarter of the height fills.
  """
  palette = np.array(list(shapes.COLORS.values()))
  far = np.abs(image[:, :, None].astype(int) - palette).sum(-1)
  inside = far.min(-1) < 20
  color = list(shapes.COLORS)[np.bincount(far.argmin(-1)[inside]).argmax()]
  rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
  box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  top, bottom = box[0].mean(), box[-1].mean()
  if top > 0.9 and bottom > 0.9:
    shape = 'square'
  elif bottom > 0.9:
    shape = 'triangle'
  else:
    shape = 'circle' if box.mean() > 0.65 else 'cross'
  height = image.shape[0]
  centre = ((columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2)
  # Mixed pixels and thin corners at both sides.
  half = (box.shape[1] + 1.5) / 2 / height
  sizes = shapes.SIZES
  size = min(sizes, key=lambda name: abs(sizes[name] - half))
  return color, shape, size, tuple(side / height for side in centre)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_picture_of_one_thing_is_what_its_attributes_say(split):
  source = open_split(split)
  for index in range(144):
    record = source[index]
    color, shape, size, centre = look(record['image'])
    place = min(
      shapes.PLACES,
      key=lambda name: np.abs(np.subtract(shapes.PLACES[name], centre)).sum(),
    )
    assert record['attributes'] == {
      'place': place,
      'size_1': size,
      'color_1': color,
      'shape_1': shape,
    }
    assert source.fields(index) == record['attributes']


def test_a_picture_of_two_things_is_what_its_attributes_say():
  source = open_split('train', 'objects=2')
  halves = {
    'above': (np.s_[:32], np.s_[32:]),
    'below': (np.s_[32:], np.s_[:32]),
    'to the left of': (np.s_[:, :32], np.s_[:, 32:]),
    'to the right of': (np.s_[:, 32:], np.s_[:, :32]),
  }
  for index in range(100):
    record = source[index]
    found = record['attributes']
    for number, half in enumerate(halves[found['place']], 1):
      # On a picture of its own, the other half being white.
      image = np.full_like(record['image'], 255)
      image[half] = record['image'][half]
      color, shape, size, _ = look(image)
      assert color == found[f'color_{number}']
      assert shape == found[f'shape_{number}']
      assert size == found[f'size_{number}']


@pytest.mark.parametrize('argument', ['objects=1', 'objects=2'])
def test_held_out_pairs_are_in_every_test_scene_and_no_train_scene(argument):
  def pairs(source, index):
    fields = source.fields(index)
    return [
      (fields[f'color_{number}'], fields[f'shape_{number}'])
      for number in (1, 2)
      if f'color_{number}' in fields
    ]

  train, test = (open_split(split, argument) for split in ('train', 'test'))
  scenes = [pairs(train, index) for index in range(1500)]
  assert all(len(set(scene)) == len(scene) for scene in scenes)
  seen = set().union(*scenes)
  assert seen == set(shapes._PAIRS) - set(shapes.HELD_OUT)
  for index in range(len(test)):
    assert set(pairs(test, index)) & set(shapes.HELD_OUT)
  captions = {test.captions(index) for index in range(len(test))}
  assert len(captions) == len(test)
  # Every word is learned: only together are they new.
  assert {color for color, _ in seen} == set(shapes.COLORS)
  assert {shape for _, shape in seen} == set(shapes.SHAPES)


@pytest.mark.parametrize('argument', ['objects=1', 'objects=2'])
def test_captions_say_the_truth_and_can_be_read_back(argument):
  source, unsaid = open_split('train', argument), 0
  for index in range(300):
    (caption,) = source.captions(index)
    said = shapes.parse_caption(caption)
    assert str(said) == caption
    attributes = source.fields(index)
    assert said.attributes().items() <= attributes.items()
    unsaid += len(attributes) - len(said.attributes())
  assert 0.05 < unsaid / (300 * int(argument[-1])) < 0.16
  test = open_split('test', argument)
  said = shapes.parse_caption(test.captions(5)[0])
  assert said.attributes() == test.fields(5)


def test_scenes_depend_on_seed_split_and_index_alone():
  source = open_split('train', 'pixels=32,seed=3')
  again = pickle.loads(pickle.dumps(source))
  last = len(source) - 1
  for index in (7, 0, last):
    np.testing.assert_array_equal(source[index]['image'], again[index]['image'])
  images = [
    source[7]['image'],
    source[8]['image'],
    open_split('train', 'pixels=32,seed=4')[7]['image'],
    open_split('test', 'pixels=32,seed=3')[7]['image'],
  ]
  assert images[0].shape == (32, 32, 3) and images[0].dtype == np.uint8
  assert len({image.tobytes() for image in images}) == 4
  # The same words are never the same picture twice.
  test = [open_split('test', f'seed={seed}') for seed in (0, 1)]
  assert test[0].captions(4) == test[1].captions(4)
  assert (test[0][4]['image'] != test[1][4]['image']).any()
  with pytest.raises(IndexError):
    source[last + 1]


@pytest.mark.parametrize(
  'argument, message',
  [
    ('pixel=32', "bad setting 'pixel=32'.*did you mean 'pixels'"),
    ('pixels=big', "bad setting 'pixels=big'.*whole number$"),
    ('pixels=8', 'pixels are 16 or more'),
    ('objects=3', 'objects 1 or 2'),
    ('seed=4294967296', 'below 2'),
  ],
)
def test_impossible_settings_are_refused(argument, message):
  with pytest.raises(ValueError, match=message):
    shapes.shapes(argument)


def test_other_captions_are_refused():
  scene = shapes.parse_caption('A Small red  circle above a blue square')
  assert scene.attributes()['size_1'] == 'small'
  assert 'size_2' not in scene.attributes()
  with pytest.raises(ValueError, match="'a pink circle above' is not like"):
    shapes.parse_caption('a pink circle above')
