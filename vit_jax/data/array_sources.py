"""Sources held in memory: scikit-learn's digits and MNIST-family IDX files."""

import functools
import gzip
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_DIGIT_NAMES = tuple('0123456789')
_IDX_PREFIXES = {'train': 'train', 'test': 't10k'}
# The third byte of the magic number says 'unsigned bytes', the fourth how many
# dimensions follow (http://yann.lecun.com/exdb/mnist/).
_IDX_UINT8 = 0x08


class ArraySource:
  """Images held in memory.

  Attributes:
    images: uint8 [examples, height, width, channels].
    labels: int list, one per example.
    class_names: Names of the classes.
    prefix: What names are made of: 'train' gives 'train/0', 'train/1', ...
  """

  def __init__(
    self,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    prefix: str,
  ):
    self.images = images
    self.labels = labels.tolist()
    self.class_names = tuple(class_names)
    self.prefix = prefix

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self.images[index], 'label': self.labels[index]}

  def name(self, index: int) -> str:
    return f'{self.prefix}/{index}'


def digits(argument: str) -> dict[str, Callable[[], ArraySource]]:
  """Returns how to open scikit-learn's digits: 8x8x1, 1437 train, 360 test.

  Grey levels 0..16 are scaled to 0..255. The split is stratified and fixed:
  of the digits ordered by class, every fifth is a test digit.

  Args:
    argument: Unused; there is nothing to choose.
  """
  del argument
  return {split: functools.partial(_digits, split) for split in _IDX_PREFIXES}


def idx(directory: str) -> dict[str, Callable[[], ArraySource]]:
  """Returns how to open each split of a folder of IDX files.

  Args:
    directory: Folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
      t10k-images-... (the test split), each with or without .gz. Classes are
      '0'..'9' unless classes.txt names them, one a line.

  Raises:
    FileNotFoundError: If the folder has no such file.
  """
  root = pathlib.Path(directory)
  openers = {
    split: functools.partial(_idx_split, root, split)
    for split, prefix in _IDX_PREFIXES.items()
    if any(root.glob(f'{prefix}-images-idx3-ubyte*'))
  }
  if not openers:
    raise FileNotFoundError(
      f'no train-images-idx3-ubyte[.gz] or t10k-images-idx3-ubyte[.gz] in '
      f'{root}'
    )
  return openers


def _digits(split: str) -> ArraySource:
  """Opens one split of scikit-learn's digits."""
  from sklearn import datasets  # Slow to import; only this source needs it.

  bunch = datasets.load_digits()
  images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
  is_test = np.zeros(len(images), bool)
  is_test[np.argsort(bunch.target, kind='stable')[::5]] = True
  chosen = is_test if split == 'test' else ~is_test
  return ArraySource(images[chosen], bunch.target[chosen], _DIGIT_NAMES, split)


def _idx_split(root: pathlib.Path, split: str) -> ArraySource:
  """Opens one split of a folder of IDX files."""
  prefix = _IDX_PREFIXES[split]
  images = _read_idx(root / f'{prefix}-images-idx3-ubyte', dimensions=3)
  labels = _read_idx(root / f'{prefix}-labels-idx1-ubyte', dimensions=1)
  if len(images) != len(labels):
    raise ValueError(
      f'{root} has {len(images)} images but {len(labels)} labels for '
      f'{split!r}; the files do not belong together'
    )
  classes = root / 'classes.txt'
  class_names = _DIGIT_NAMES
  if classes.exists():
    class_names = tuple(classes.read_text(encoding='utf-8').split('\n'))
    class_names = tuple(name.strip() for name in class_names if name.strip())
  if labels.size and labels.max() >= len(class_names):
    raise ValueError(
      f'{root} has the label {labels.max()} but {len(class_names)} classes; '
      f'name every class in {classes}, one a line'
    )
  return ArraySource(images[..., None], labels, class_names, split)


def _read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
  """Reads an IDX file of unsigned bytes, `path` or `path`.gz."""
  packed = path.with_name(path.name + '.gz')
  if path.exists():
    content = path.read_bytes()
  elif packed.exists():
    path = packed
    try:
      content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
      raise ValueError(f'{path} is damaged ({error}); get it again') from error
  else:
    raise FileNotFoundError(f'neither {path} nor {packed.name} exists')
  expected = bytes([0, 0, _IDX_UINT8, dimensions])
  if content[:4] != expected:
    raise ValueError(
      f'{path} begins with {content[:4].hex()}, not the magic number '
      f'{expected.hex()} of an IDX file of bytes in {dimensions} dimension(s)'
    )
  header = 4 + 4 * dimensions
  shape = np.frombuffer(content[4:header].ljust(header - 4, b'\0'), '>u4')
  size = int(np.prod(shape, dtype=np.uint64))
  if len(content) != header + size:
    raise ValueError(
      f'{path} says it holds {"x".join(map(str, shape))} bytes but has '
      f'{len(content) - header}; it is cut off or not an IDX file'
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
