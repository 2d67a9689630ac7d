"""Random-access data sources: what the examples are, not how they are read.

A source is opened from a short text:

  digits        scikit-learn's 8x8 digits; nothing to download
  idx:DIR       MNIST-family IDX files (MNIST, Fashion-MNIST, ...), .gz or not
  folder:DIR    DIR/<split>/<class>/* or DIR/<class>/*, any image format
  tfds:NAME     a data set prepared by TensorFlow Datasets as ArrayRecord
  field:NAME:SOURCE  a field of a source of captions, see `captions`

Several are joined with ' + ' if their classes are the same.
"""

import difflib
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vit_jax.data import (
  array_sources,
  field_source,
  folder_source,
  splits,
  tfds_source,
)

# Each returns, for what follows the colon, how to open each split there is.
_FAMILIES = {
  'digits': array_sources.digits,
  'idx': array_sources.idx,
  'folder': folder_source.folder,
  'tfds': tfds_source.tfds,
  'field': field_source.fields,
}


class Source(Protocol):
  """Random access to labelled images; picklable, safe to read from threads.

  Attributes:
    class_names: Names of the classes; a label is an index into them.
    labels: The label of each record.
  """

  class_names: tuple[str, ...]
  labels: Sequence[int]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns one record.

    Args:
      index: From 0 to `len(self) - 1`.

    Returns:
      'image': uint8 [height, width, channels], or the bytes of an image file;
      'label': int.
    """
    ...

  def name(self, index: int) -> str:
    """Returns what a person calls the record: its file, or 'train/123'."""
    ...


class JoinedSource:
  """Ranges of other sources, one after the other.

  Attributes:
    parts: Pairs of a source and the range of its records to show.
    prefixes: What to put before the names of each part's records.
  """

  def __init__(
    self,
    parts: Sequence[tuple[Source, range]],
    prefixes: Sequence[str] | None = None,
  ):
    self.parts = tuple(parts)
    self.prefixes = tuple(prefixes or [''] * len(self.parts))
    self.class_names = self.parts[0][0].class_names
    self._length = sum(len(indices) for _, indices in self.parts)

  def __len__(self) -> int:
    return self._length

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The label of each record, int [examples]."""
    return np.concatenate(
      [np.asarray(source.labels)[indices] for source, indices in self.parts]
    )

  def __getitem__(self, index: int) -> dict[str, Any]:
    part, index = self._locate(index)
    return self.parts[part][0][index]

  def name(self, index: int) -> str:
    part, index = self._locate(index)
    return self.prefixes[part] + self.parts[part][0].name(index)

  def _locate(self, index: int) -> tuple[int, int]:
    """Returns which part holds a record, and the record's index in it."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    part = 0
    while index >= len(self.parts[part][1]):
      index -= len(self.parts[part][1])
      part += 1
    return part, self.parts[part][1][index]


class ClassesSource:
  """The records of some classes of another source, in its order.

  Attributes:
    class_names: The classes; labels are indices into them.
    labels: The label of each record, int [examples].
  """

  def __init__(self, source: Source, class_names: Sequence[str]):
    """Finds the records.

    Args:
      source: To choose from.
      class_names: Those to keep, in the order that labels will have.

    Raises:
      ValueError: If the source has no such class, or one is named twice.
    """
    self.class_names = tuple(class_names)
    for name in class_names:
      if name not in source.class_names:
        near = difflib.get_close_matches(str(name), source.class_names, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        raise ValueError(
          f'there is no class {name!r}{hint} The classes are '
          f'{_shorten(source.class_names)}'
        )
    if len(set(class_names)) < len(class_names):
      raise ValueError(f'a class is named twice in {", ".join(class_names)}')
    self._source = source
    new_label = np.full(len(source.class_names), -1)
    for label, name in enumerate(class_names):
      new_label[source.class_names.index(name)] = label
    labels = new_label[np.asarray(source.labels)]
    self._indices = np.flatnonzero(labels >= 0)
    self.labels = labels[self._indices]
    if not len(self.labels):
      raise ValueError(
        f'no record is of the classes {_shorten(self.class_names)}'
      )

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._source[int(self._indices[index])]
    return {**record, 'label': int(self.labels[index])}

  def name(self, index: int) -> str:
    return self._source.name(int(self._indices[index]))


def open_source(spec: str, split: str, classes: Sequence[str] = ()) -> Source:
  """Opens a source.

  Args:
    spec: What to read: 'digits', 'idx:DIR', 'folder:DIR', 'tfds:NAME', or
      several joined with ' + '.
    split: Which part of it, such as 'train', 'train[:99%]' or 'train+test'
      (see `splits`); of a joined spec, the same part of each.
    classes: Names of those to keep, in the order of their labels; all if none.

  Returns:
    The source.

  Raises:
    ValueError: If the spec, the split or a class is unknown, files are
      malformed, or joined sources have different classes.
    FileNotFoundError: If the data is not there.
  """
  source = _open_joined(spec, split)
  return ClassesSource(source, classes) if classes else source


def _open_joined(spec: str, split: str) -> Source:
  """Opens one spec, or several joined with ' + '."""
  parts = splits.parse_split(split)
  specs = [one.strip() for one in spec.split(' + ')]
  sources = [_open_one(one, parts) for one in specs]
  if len(sources) == 1:
    return sources[0]
  for one, source in zip(specs, sources):
    if source.class_names != sources[0].class_names:
      raise ValueError(
        f'{specs[0]!r} and {one!r} cannot be joined: their classes are '
        f'{_shorten(sources[0].class_names)} and '
        f'{_shorten(source.class_names)}'
      )
  return JoinedSource(
    [(source, range(len(source))) for source in sources],
    # A file path names its source already; 'train/123' does not.
    ['' if one.startswith('folder:') else f'{one}: ' for one in specs],
  )


def _open_one(spec: str, parts: Sequence[splits.Part]) -> Source:
  """Opens one spec, without ' + '."""
  family, _, argument = spec.partition(':')
  if family not in _FAMILIES:
    near = difflib.get_close_matches(family, _FAMILIES, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'unknown source {spec!r}: sources are digits, idx:DIR, folder:DIR, '
      f'tfds:NAME and field:NAME:SOURCE{hint}'
    )
  if bool(argument) == (family == 'digits'):
    expected = 'digits' if family == 'digits' else f'{family}:...'
    raise ValueError(f'bad source {spec!r}: write {expected!r}')
  openers = _FAMILIES[family](argument)
  opened: dict[str, Source] = {}
  for part in parts:
    if part.name not in openers:
      raise splits.unknown_split(part.name, sorted(openers), spec)
    if part.name not in opened:
      opened[part.name] = openers[part.name]()
  if len(parts) == 1 and not (parts[0].start or parts[0].stop):
    return opened[parts[0].name]
  return JoinedSource(
    [
      (opened[part.name], part.resolve(len(opened[part.name])))
      for part in parts
    ]
  )


def _shorten(names: Sequence[str]) -> str:
  """Returns a few class names and their number."""
  shown = ', '.join(names[:5])
  return f'{shown}, ... ({len(names)} in all)' if len(names) > 5 else shown
