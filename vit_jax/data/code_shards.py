"""Codes in place of images: what `python -m vit_jax.encode` has written."""

import bisect
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from vit_jax.data import code_files
from vit_jax.data import preprocess as preprocess_lib


class CodeShards:
  """The records of one split; picklable. See `captions.CaptionSource`.

  A record has 'codes', unsigned [crops, codes], in place of 'image'.

  Attributes:
    about: What all have in common.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens a split, and reads all of it once to see whether it is as written.

    Raises:
      ValueError: If it is not complete, or damaged; says which file.
    """
    self.about, shards = code_files.read_index(folder)
    self._folder = folder
    counts = [shard['records'] for shard in shards]
    self._ends = np.cumsum(counts).tolist()
    with futures.ThreadPoolExecutor() as pool:
      damages = list(
        pool.map(
          functools.partial(code_files.damage, folder),
          range(len(shards)),
          shards,
        )
      )
    if found := [damage for damage in damages if damage]:
      raise ValueError(
        f'{len(found)} of {len(shards)} shards in {folder} are damaged: '
        f'{"; ".join(found[:5])}: {code_files.AGAIN}'
      )

  @functools.cached_property
  def _shards(self) -> list[dict[str, np.ndarray]]:
    """The arrays of each shard, mapped into memory."""
    return [
      {
        name: code_files.load(code_files.path_of(self._folder, number, name))
        for name in code_files.ARRAYS
      }
      for number in range(len(self._ends))
    ]

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> dict[str, Any]:
    shard, place = self._locate(index)
    codes = np.array(shard['codes'][place])
    return {'codes': codes, 'texts': self.captions(index)}

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the captions of a record."""
    return tuple(self._row(index)['captions'])

  def fields(self, index: int) -> Mapping[str, Any]:
    """Returns what else the source knew of a record."""
    return self._row(index)['fields']

  def name(self, index: int) -> str:
    """Returns what the source calls the record."""
    return self._row(index)['name']

  def _row(self, index: int) -> dict[str, Any]:
    shard, place = self._locate(index)
    start = shard['ends'][place - 1] if place else 0
    return json.loads(shard['rows'][start : shard['ends'][place]].tobytes())

  def _locate(self, index: int) -> tuple[dict[str, np.ndarray], int]:
    """Returns the shard of a record, and its place there."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    number = bisect.bisect_right(self._ends, index)
    first = self._ends[number - 1] if number else 0
    return self._shards[number], index - first

  def __getstate__(self):
    # Maps would be pickled as all that they show.
    return {k: v for k, v in vars(self).items() if k != '_shards'}


class ChooseCrop:
  """Stands for the preprocessing of images where there are codes; picklable.

  Attributes:
    text: How the images were prepared.
    deterministic: Whether no step of it was random.
    image_shape: Height, width and channels of what came out.
  """

  def __init__(
    self, image: preprocess_lib.Preprocess, image_shape: tuple[int, int, int]
  ):
    self.image_shape = image_shape
    self.text = image.text
    self.deterministic = image.deterministic

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator | None = None
  ) -> dict[str, np.ndarray]:
    """Returns 'codes', int32 [codes]: of any crop, without `rng` the first."""
    crops = record['codes']
    several = rng is not None and len(crops) > 1
    chosen = int(rng.integers(len(crops))) if several else 0
    return {'codes': crops[chosen].astype(np.int32)}


def open_codes(path: str) -> dict[str, Callable[[], CodeShards]]:
  """Returns how to open each split, which reads all of it once.

  Args:
    path: What `python -m vit_jax.encode` has written: a folder for each split.

  Raises:
    FileNotFoundError: If there is none.
  """
  folders = _folders(path)
  return {
    name: functools.partial(CodeShards, folder)
    for name, folder in folders.items()
  }


def read_about(path: str, split: str) -> code_files.About:
  """Returns what the records of a split have in common.

  Args:
    path: See `open_codes`.
    split: Name of the split.

  Raises:
    FileNotFoundError: If there is no such split.
    ValueError: If it is not complete.
  """
  folders = _folders(path)
  if split not in folders:
    raise FileNotFoundError(
      f'{path} has no split {split!r}; it has {", ".join(sorted(folders))}'
    )
  return code_files.read_index(folders[split])[0]


def _folders(path: str) -> dict[str, pathlib.Path]:
  """Returns the folder of each split."""
  root = pathlib.Path(path).expanduser()
  folders = {
    folder.name: folder
    for folder in (root.iterdir() if root.is_dir() else ())
    if any(folder.glob('*.json'))
  }
  if not folders:
    raise FileNotFoundError(
      f'there are no codes at {root}: expected a folder that '
      'vit_jax.encode has written'
    )
  return folders
