"""Captions and images in tar archives of the WebDataset layout.

The files of one sample share a name up to the first dot: 000001.jpg,
000001.txt, 000001.json. Any sample is read directly, so their order, resuming
and sharing out do not depend on how many archives there are.
"""

import collections
import functools
import glob
import json
import os
import pathlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.data import caption_files, tar_files

_IMAGES = ('jpg', 'jpeg', 'png', 'webp', 'gif', 'bmp', 'tif', 'tiff')
_TEXT, _FIELDS = 'txt', 'json'
# Offset and size of what a sample lacks.
_ABSENT = (0, -1)

Place = tuple[int, int]


class CaptionShards:
  """The samples of some archives, in the order they lie there.

  Attributes:
    dropped: How many samples were left out, by reason.
  """

  def __init__(self, paths: Sequence[str | os.PathLike]):
    """Finds the samples.

    Args:
      paths: Archives, such as a .tar; see `tar_files.Archive`.

    Raises:
      ValueError: If an archive is damaged, or none has an image with a text.
    """
    self._archives = tuple(map(tar_files.Archive, paths))
    self.dropped: collections.Counter[str] = collections.Counter()
    names, shards, places = [], [], []
    extensions: set[str] = set()
    for shard, archive in enumerate(self._archives):
      for key, sample in _samples(archive.files()).items():
        extensions.update(sample)
        image = next((sample[e] for e in _IMAGES if e in sample), None)
        if image is None or not (_TEXT in sample or _FIELDS in sample):
          self.dropped['no image' if image is None else 'no text'] += 1
          continue
        names.append(key.encode('utf-8', 'surrogateescape'))
        shards.append(shard)
        places.append(
          (image, sample.get(_TEXT, _ABSENT), sample.get(_FIELDS, _ABSENT))
        )
    if not names:
      raise ValueError(
        f'no image with a text in {", ".join(map(str, paths)) or "no archive"}:'
        f' expected files such as 001.jpg and 001.txt or 001.json; found '
        f'the extensions {", ".join(sorted(extensions)) or "of no file"}'
      )
    self._names = b''.join(names)
    self._ends = np.cumsum([0] + [len(name) for name in names])
    self._shards = np.array(shards, np.int32)
    # [samples, image or text or fields, offset or size]
    self._places = np.array(places, np.int64)

  def __len__(self) -> int:
    return len(self._shards)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return {'image': self._read(index, 0), 'texts': self.captions(index)}

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the captions of a record, without reading its image.

    Raises:
      ValueError: If they cannot be understood; says of which record.
    """
    text = self._read(index, 1)
    fields = self.fields(index) if text is None else {}
    try:
      if text is None:
        return caption_files.captions_of(fields)
      return (text.decode('utf-8').strip(),)
    except ValueError as error:
      raise ValueError(f'the caption of {self.name(index)}: {error}') from error

  def fields(self, index: int) -> dict[str, Any]:
    """Returns what the .json file of a record says; nothing without one."""
    content = self._read(index, 2)
    try:
      fields = {} if content is None else json.loads(content)
    except ValueError as error:
      raise ValueError(f'the .json of {self.name(index)}: {error}') from error
    if not isinstance(fields, dict):
      raise ValueError(f'the .json of {self.name(index)} is not an object')
    return fields

  def name(self, index: int) -> str:
    self._check(index)
    key = self._names[self._ends[index] : self._ends[index + 1]]
    path = self._archives[self._shards[index]].path
    return f'{path}: {key.decode("utf-8", "surrogateescape")}'

  def _read(self, index: int, kind: int) -> bytes | None:
    """Returns one file of a sample; None if it has no such file."""
    self._check(index)
    offset, size = self._places[index, kind].tolist()
    if size < 0:
      return None
    return self._archives[self._shards[index]].read(offset, size)

  def _check(self, index: int) -> None:
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')


def open_shards(path: str) -> dict[str, Callable[[], CaptionShards]]:
  """Returns how to open each split of archives in the WebDataset layout.

  Args:
    path: A folder. If it has a folder 'train', each of its folders is a split
      and holds .tar files; otherwise its own .tar files are the one split,
      'all'. Or a pattern for such files, as in 'DIR/shard-00[0-7]*.tar'.

  Raises:
    FileNotFoundError: If there is no such file.
  """
  root = pathlib.Path(path).expanduser()
  if (root / 'train').is_dir():
    found = {
      folder.name: sorted(folder.glob('*.tar'))
      for folder in root.iterdir()
      if folder.is_dir()
    }
  elif root.is_dir():
    found = {'all': sorted(root.glob('*.tar'))}
  else:
    found = {'all': sorted(glob.glob(str(root)))}
  found = {split: paths for split, paths in found.items() if paths}
  if not found:
    raise FileNotFoundError(
      f'no archive at {root}: expected a folder with .tar files, one with '
      "folders such as 'train' that hold them, or a pattern such as "
      "'DIR/*.tar'"
    )
  return {
    split: functools.partial(CaptionShards, paths)
    for split, paths in found.items()
  }


def _samples(files: Mapping[str, Place]) -> dict[str, dict[str, Place]]:
  """Groups files by their name up to its first dot.

  Returns:
    The places of each sample's files, by what follows the dot.
  """
  samples: dict[str, dict[str, Place]] = {}
  for name, place in files.items():
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition('.')
    if stem:
      key = posixpath.join(folder, stem)
      samples.setdefault(key, {})[extension.lower()] = place
  return samples
