"""Sources: what is read from each family, splits, and clear errors."""

import gzip
import importlib.util
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import captions, images, sources, splits

SHARED_DATA = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data'


def write_idx(path, array):
  header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
  content = header + array.astype(np.uint8).tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


def write_image(path, color=(0, 0, 0)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (8, 6), color).save(path)


@pytest.fixture
def idx_folder(tmp_path):
  """Two train images (.gz) and one test image (plain), 3x4 pixels."""
  pixels = np.arange(24).reshape(2, 3, 4)
  write_idx(tmp_path / 'train-images-idx3-ubyte.gz', pixels)
  write_idx(tmp_path / 'train-labels-idx1-ubyte.gz', np.array([1, 0]))
  write_idx(tmp_path / 't10k-images-idx3-ubyte', pixels[:1] + 100)
  write_idx(tmp_path / 't10k-labels-idx1-ubyte', np.array([1]))
  return tmp_path


@pytest.fixture
def image_folder(tmp_path):
  """20 train images of 'cat' and 'dog', 2 test images."""
  root = tmp_path / 'pets'
  for number in range(10):
    write_image(root / 'train' / 'cat' / f'{number}.png')
    write_image(root / 'train' / 'dog' / 'deep' / 'er' / f'{number}.JPG')
  write_image(root / 'test' / 'dog' / 'a.bmp')
  write_image(root / 'test' / 'cat' / 'b.webp')
  write_image(root / 'train' / 'cat' / '.hidden.png')
  write_image(root / 'train' / '.cache' / 'x.png')
  (root / 'train' / 'cat' / 'notes.txt').write_text('no image')
  return root


@pytest.mark.parametrize(
  'text, length, expected',
  [
    ('train', 10, range(10)),
    ('train[:10%]', 1437, range(144)),
    ('train[90%:]', 1437, range(1293, 1437)),
    ('train[100:200]', 1437, range(100, 200)),
    ('train[-10%:]', 50, range(45, 50)),
    ('train[:-3]', 10, range(7)),
    # Exact halves go to the even number, as in TFDS.
    ('train[:50%]', 5, range(2)),
    ('train[:50%]', 7, range(4)),
  ],
)
def test_split_selects_the_examples_tfds_selects(text, length, expected):
  (part,) = splits.parse_split(text)
  assert part.resolve(length) == expected


@pytest.mark.parametrize(
  'text, message',
  [
    ('train[', 'bad split'),
    ('train[5]', 'bad split'),
    ('train[:]', 'bad slice'),
    ('train[:1.5]', 'bad slice'),
    ('train[:10%]+', 'bad split'),
    ('train[10:20%]', 'mixes'),
    ('train[:1438]', 'beyond the end'),
    ('train[:101%]', 'beyond 100%'),
    ('train[5:5]', 'selects no example'),
    ('tran', "it has test, train; did you mean 'train'"),
  ],
)
def test_wrong_split_is_explained(text, message):
  with pytest.raises(ValueError, match=message):
    sources.open_source('digits', text)


def test_digits_are_split_evenly_and_disjointly():
  train = sources.open_source('digits', 'train')
  test = sources.open_source('digits', 'test')
  both = sources.open_source('digits', 'train[:99%]+test')
  assert (len(train), len(test)) == (1437, 360)
  counts = np.bincount([test[i]['label'] for i in range(len(test))])
  assert counts.min() >= 35 and counts.max() <= 37
  assert train.class_names == tuple('0123456789')
  assert train[0]['image'].shape == (8, 8, 1)
  assert train.images.min() == 0 and train.images.max() == 255
  assert len(both) == 1423 + 360
  assert both.name(1422) == 'train/1422' and both.name(1423) == 'test/0'
  np.testing.assert_array_equal(both[1423]['image'], test[0]['image'])


def test_idx_reads_packed_and_plain_files(idx_folder):
  train = sources.open_source(f'idx:{idx_folder}', 'train')
  test = sources.open_source(f'idx:{idx_folder}', 'test')
  assert (len(train), len(test)) == (2, 1)
  assert [train[i]['label'] for i in range(2)] == [1, 0]
  np.testing.assert_array_equal(train[1]['image'][2, :, 0], [20, 21, 22, 23])
  assert test[0]['image'][0, 0, 0] == 100
  (idx_folder / 'classes.txt').write_text('shoe\nhat\n')
  named = sources.open_source(f'idx:{idx_folder}', 'train')
  assert named.class_names == ('shoe', 'hat')


def test_idx_refuses_malformed_files(idx_folder):
  images_path = idx_folder / 't10k-images-idx3-ubyte'
  content = images_path.read_bytes()
  images_path.write_bytes(content[:-1])
  with pytest.raises(ValueError, match='1x3x4 bytes but has 11'):
    sources.open_source(f'idx:{idx_folder}', 'test')
  images_path.write_bytes(b'\0\0\x0d\x03' + content[4:])
  with pytest.raises(ValueError, match='00000d03, not the magic number 000008'):
    sources.open_source(f'idx:{idx_folder}', 'test')
  write_idx(images_path, np.zeros((2, 3, 4)))
  with pytest.raises(ValueError, match='2 images but 1 labels'):
    sources.open_source(f'idx:{idx_folder}', 'test')
  packed = idx_folder / 'train-labels-idx1-ubyte.gz'
  packed.write_bytes(packed.read_bytes()[:-6])
  with pytest.raises(ValueError, match='damaged'):
    sources.open_source(f'idx:{idx_folder}', 'train')
  (idx_folder / 'train-labels-idx1-ubyte.gz').unlink()
  with pytest.raises(FileNotFoundError, match='neither .*labels'):
    sources.open_source(f'idx:{idx_folder}', 'train')


def test_idx_reads_fashion_mnist():
  folder = SHARED_DATA / 'fashion-mnist'
  if not folder.exists():
    pytest.skip(f'no Fashion-MNIST in {folder}')
  test = sources.open_source(f'idx:{folder}', 'test')
  assert len(test) == 10_000 and test.images.shape[1:] == (28, 28, 1)
  np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)


def test_folder_finds_images_and_takes_classes_from_train(image_folder):
  train = sources.open_source(f'folder:{image_folder}', 'train')
  test = sources.open_source(f'folder:{image_folder}', 'test')
  assert train.class_names == test.class_names == ('cat', 'dog')
  names = {pathlib.Path(train.name(i)).name for i in range(len(train))}
  assert len(train) == 20 and names >= {'0.png', '9.JPG'}
  for i in range(20):
    class_name = train.class_names[train[i]['label']]
    assert f'/{class_name}/' in train.name(i)
    assert train[i]['image'] == pathlib.Path(train.name(i)).read_bytes()
  assert {test[0]['label'], test[1]['label']} == {0, 1}


def test_folder_order_is_mixed_and_the_same_elsewhere(image_folder, tmp_path):
  """A slice is a fair subset, whatever folder or machine the data is on."""
  here = sources.open_source(f'folder:{image_folder}', 'train')
  moved = tmp_path / 'elsewhere'
  shutil.copytree(image_folder / 'train', moved)
  there = sources.open_source(f'folder:{moved}', 'all')
  ends = [
    [pathlib.Path(source.name(i)).relative_to(root) for i in range(20)]
    for source, root in ((here, image_folder / 'train'), (there, moved))
  ]
  assert ends[0] == ends[1] != sorted(ends[0])
  labels = [here[i]['label'] for i in range(20)]
  assert labels != sorted(labels)


def test_folder_errors_say_what_to_do(image_folder):
  with pytest.raises(ValueError, match='no split .*it has test, train'):
    sources.open_source(f'folder:{image_folder}', 'validation')
  write_image(image_folder / 'test' / 'horse' / 'a.png')
  with pytest.raises(
    ValueError, match='classes that the train split lacks: ho'
  ):
    sources.open_source(f'folder:{image_folder}', 'test')
  with pytest.raises(FileNotFoundError, match='no folder'):
    sources.open_source(f'folder:{image_folder}x', 'train')


def test_sources_are_joined_if_their_classes_agree(image_folder, idx_folder):
  spec = f'folder:{image_folder}'
  joined = sources.open_source(f'{spec} + {spec}', 'train[:25%]')
  assert len(joined) == 10 and joined.name(0) == joined.name(5)
  with pytest.raises(ValueError, match='cannot be joined.*cat, dog'):
    sources.open_source(f'{spec} + idx:{idx_folder}', 'train')
  with pytest.raises(ValueError, match="did you mean 'folder'"):
    sources.open_source('foldr:x', 'train')


@pytest.mark.parametrize('split', ['train', 'train[10%:60%]'])
def test_some_classes_are_kept_under_new_labels(image_folder, split):
  for spec in ('digits', f'folder:{image_folder}'):
    whole = sources.open_source(spec, split)
    assert [record['label'] for record in whole] == list(whole.labels)
    kept = whole.class_names[1::-1]
    some = sources.open_source(spec, split, classes=kept)
    assert some.class_names == kept
    expected = [
      (whole.name(i), kept.index(whole.class_names[label]))
      for i, label in enumerate(whole.labels)
      if whole.class_names[label] in kept
    ]
    assert 0 < len(expected) <= len(whole)
    found = [(some.name(i), some[i]['label']) for i in range(len(some))]
    assert found == expected and list(some.labels) == [x for _, x in expected]
  with pytest.raises(ValueError, match="no class '10'; did you mean '1'"):
    sources.open_source('digits', 'train', classes=('1', '10'))
  with pytest.raises(ValueError, match='no record is of the classes 9'):
    sources.open_source('digits', 'train[:1]', classes=('9',))
  with pytest.raises(ValueError, match='named twice'):
    sources.open_source('digits', 'train', classes=('1', '1'))


def test_sources_survive_pickling(image_folder, idx_folder):
  for spec in ('digits', f'idx:{idx_folder}', f'folder:{image_folder}'):
    source = sources.open_source(spec, 'train[1:]')
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) and copy.name(0) == source.name(0)
    assert copy[0]['label'] == source[0]['label']
    np.testing.assert_array_equal(copy[0]['image'], source[0]['image'])


def test_tfds_reads_encoded_images_without_tensorflow(tmp_path, monkeypatch):
  if importlib.util.find_spec('tensorflow_datasets') is None:
    pytest.skip('tensorflow_datasets is not installed')
  import tensorflow_datasets as tfds

  class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Four images, two classes."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(6, 8, 3)),
            'label': tfds.features.ClassLabel(names=['day', 'night']),
          }
        )
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for number in range(4):
        # Files are stored as they are; arrays would need TensorFlow.
        path = tmp_path / f'{number}.png'
        write_image(path, (number, 0, 0))
        yield number, {'image': str(path), 'label': number % 2}

  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(FileNotFoundError, match='download_and_prepare'):
    sources.open_source('tfds:tiny_pictures', 'train')
  builder = tfds.builder(
    'tiny_pictures', data_dir=tmp_path, file_format='array_record'
  )
  builder.download_and_prepare()
  source = sources.open_source('tfds:tiny_pictures', 'train[1:]')
  assert list(source.labels) == [record['label'] for record in source]
  source = pickle.loads(pickle.dumps(source))
  assert source.class_names == ('day', 'night') and len(source) == 3
  assert isinstance(source[0]['image'], bytes)
  for i in range(3):
    red = images.decode(source[i]['image'])[0, 0, 0]
    assert red % 2 == source[i]['label']
  assert source.name(0) == 'train/1'
  with pytest.raises(ValueError, match='no split .*it has train'):
    sources.open_source('tfds:tiny_pictures', 'test')
  with pytest.raises(ValueError, match="did you mean 'tiny_pictures'"):
    sources.open_source('tfds:tiny_picture', 'train')


def test_tfds_reads_captions(tmp_path, monkeypatch):
  if importlib.util.find_spec('tensorflow_datasets') is None:
    pytest.skip('tensorflow_datasets is not installed')
  import tensorflow_datasets as tfds

  class TinyCaptions(tfds.core.GeneratorBasedBuilder):
    """Three images with one to three captions."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(
          {
            'image': tfds.features.Image(shape=(6, 8, 3)),
            'captions': tfds.features.Sequence(
              {'text': tfds.features.Text(), 'id': np.int64}
            ),
            'number': np.int64,
          }
        )
      )

    def _split_generators(self, dl_manager):
      return {'val': self._generate_examples()}

    def _generate_examples(self):
      for number in range(3):
        path = tmp_path / f'{number}.png'
        write_image(path, (number, 0, 0))
        texts = [f'{number} {i}' for i in range(number + 1)]
        several = [{'text': text, 'id': 0} for text in texts]
        example = {'image': str(path), 'captions': several, 'number': number}
        yield number, example

  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  builder = tfds.builder(
    'tiny_captions', data_dir=tmp_path, file_format='array_record'
  )
  builder.download_and_prepare()
  source = captions.open_source('tfds_captions:tiny_captions', 'val')
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 3
  for index in range(3):
    number = source.fields(index)['number']
    record = source[index]
    expected = tuple(f'{number} {i}' for i in range(number + 1))
    assert record['texts'] == source.captions(index) == expected
    assert images.decode(record['image'])[0, 0, 0] == number
  with pytest.raises(ValueError, match="'image' and 'label' are needed"):
    sources.open_source('tfds:tiny_captions', 'val')
