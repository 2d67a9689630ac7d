"""The files that codes of images and their captions are kept in.

A folder holds a split in shards, each of as many records of the source as the
others, but for the last and for records that cannot be read:

  00000-codes.npy  unsigned [records, crops, codes], codes in raster order
  00000-rows.npy   bytes: a JSON object for each record
  00000-ends.npy   where each of those ends, [records]
  00000.json       what is in the shard, and the SHA-256 of its files
  index.json       the same of all shards, once all are there

A shard counts once its .json is there and fits, so that whoever was stopped,
or writes beside others, goes on with those that are missing. Arrays are mapped
into memory and nothing is unpickled.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_INDEX = 'index.json'
ARRAYS = ('codes', 'rows', 'ends')
_CHUNK = 2**22
# What to do about what is missing or damaged.
AGAIN = 'run the command of vit_jax.encode again, which writes what is missing'
# A map holds its file open, and a process may have about 1,000 open files.
_MOST_SHARDS = 200
_LEAST_RECORDS = 4096


@dataclasses.dataclass(frozen=True)
class About:
  """What all shards of a split have in common."""

  # Names the discrete VAE, see `vit_jax.training.frozen`.
  vae: str
  # Number of codes that it knows.
  vocabulary: int
  # Rows and columns of codes.
  grid: tuple[int, int]
  # Height, width and channels of what it has read.
  image_shape: tuple[int, int, int]
  # Where images are from, and how they were prepared.
  source: str
  split: str
  preprocess: str
  # How often each was prepared, with other random numbers.
  crops: int
  seed: int
  # Largest ratio of their sides, if there was one.
  aspect: float | None
  # Records of the source, and of a shard.
  records: int
  shard_records: int
  # What captions had to be like, '' for anything.
  captions: str = ''

  def kind(self) -> 'About':
    """Returns the same of any source: splits of one kind can be joined."""
    return dataclasses.replace(
      self, source='', split='', seed=0, records=0, shard_records=0, captions=''
    )

  @property
  def shards(self) -> int:
    """Number of shards."""
    return -(-self.records // self.shard_records)

  @property
  def dtype(self) -> np.dtype:
    """The smallest unsigned type that holds a code."""
    return np.min_scalar_type(self.vocabulary - 1)

  @classmethod
  def of_json(cls, fields: Mapping[str, Any]) -> 'About':
    """Returns what `dataclasses.asdict` and JSON made a dict of."""
    as_tuples = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in fields.items()
    }
    return cls(**as_tuples)


def shard_records(records: int) -> int:
  """Returns how many records of a source a shard should have."""
  return max(_LEAST_RECORDS, -(-records // _MOST_SHARDS))


def is_whole(folder: pathlib.Path, number: int, about: About) -> bool:
  """Returns whether a shard was written before, and is as it was written.

  Raises:
    ValueError: If it was written, but is about something else.
  """
  shard = _read_shard(folder, number, about)
  return shard is not None and not damage(folder, number, shard)


def write_shard(
  folder: pathlib.Path,
  number: int,
  about: About,
  codes: np.ndarray,
  rows: Sequence[Mapping[str, Any]],
  broken: Mapping[str, str],
) -> None:
  """Writes a shard, whole or not at all.

  Args:
    folder: Of the split.
    number: Of the shard, from 0.
    about: What all have in common.
    codes: [records, crops, codes].
    rows: 'name', 'captions' and 'fields' of each record.
    broken: What is wrong with the records that are left out, by name.
  """
  lines = [json.dumps(row, default=str).encode() for row in rows]
  arrays = {
    'codes': codes.astype(about.dtype, copy=False),
    'rows': np.frombuffer(b''.join(lines), np.uint8),
    'ends': np.cumsum([len(line) for line in lines], dtype=np.int64),
  }
  folder.mkdir(parents=True, exist_ok=True)
  for name, array in arrays.items():
    path = path_of(folder, number, name)
    temporary = _temporary(path)
    with temporary.open('wb') as file:
      np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)
  hashes = {name: _sha256(path_of(folder, number, name)) for name in ARRAYS}
  shard = dict(
    about=dataclasses.asdict(about),
    records=len(rows),
    broken=dict(broken),
    sha256=hashes,
  )
  _write_json(path_of(folder, number), shard)


def finish(folder: pathlib.Path, about: About) -> int:
  """Writes the index if all shards are there.

  Returns:
    How many are still missing.

  Raises:
    ValueError: If others have written shards about something else.
  """
  shards = [
    _read_shard(folder, number, about) for number in range(about.shards)
  ]
  missing = shards.count(None)
  if not missing:
    index = dict(about=dataclasses.asdict(about), shards=shards)
    _write_json(folder / _INDEX, index)
  return missing


def read_index(folder: pathlib.Path) -> tuple[About, list[dict[str, Any]]]:
  """Returns what all shards of a split have in common, and what is in each.

  Raises:
    ValueError: If not all are there, or no record of them could be read.
  """
  path = folder / _INDEX
  try:
    index = json.loads(path.read_text())
    about = About.of_json(index['about'])
    records = sum(shard['records'] for shard in index['shards'])
  except FileNotFoundError as error:
    raise ValueError(f'{folder} is not complete: {AGAIN}') from error
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} is damaged ({error}): {AGAIN}') from error
  if not records:
    raise ValueError(f'no record of {about.source!r} in {folder} was readable')
  return about, index['shards']


def damage(
  folder: pathlib.Path, number: int, shard: Mapping[str, Any]
) -> str | None:
  """Returns what is wrong with a shard; None if it is as it was written."""
  for name in ARRAYS:
    path = path_of(folder, number, name)
    if not path.exists():
      return f'{path.name} is not there'
    if _sha256(path) != shard['sha256'][name]:
      return f'{path.name} has another SHA-256 than when it was written'
  return None


def path_of(folder: pathlib.Path, number: int, name: str = '') -> pathlib.Path:
  return folder / (f'{number:05}-{name}.npy' if name else f'{number:05}.json')


def load(path: pathlib.Path) -> np.ndarray:
  """Maps an array into memory."""
  array = np.load(path, mmap_mode='r', allow_pickle=False)
  # As a plain array it is indexed in half the time.
  return array.view(np.ndarray)


def _read_shard(
  folder: pathlib.Path, number: int, about: About
) -> dict[str, Any] | None:
  """Returns what is in a shard, without what all have in common.

  None where it was not written, or its .json is damaged: whose part it is
  writes it again.

  Raises:
    ValueError: If it is about something else.
  """
  try:
    shard = json.loads(path_of(folder, number).read_text())
    found = About.of_json(shard['about'])
    own = dict(
      records=shard['records'],
      broken=shard['broken'],
      sha256={name: shard['sha256'][name] for name in ARRAYS},
    )
  except (OSError, ValueError, LookupError, TypeError, AttributeError):
    return None
  _check_same(folder, found, about)
  return own


def _check_same(folder: pathlib.Path, found: About, about: About) -> None:
  """Raises ValueError with what differs if shards are not about the same."""
  other = [
    f'{field.name} was {getattr(found, field.name)!r} and is '
    f'{getattr(about, field.name)!r}'
    for field in dataclasses.fields(About)
    if getattr(found, field.name) != getattr(about, field.name)
  ]
  if other:
    raise ValueError(
      f'{folder} holds other codes: {"; ".join(other)}. Name another folder, '
      'or delete this one'
    )


def _write_json(path: pathlib.Path, content: Any) -> None:
  temporary = _temporary(path)
  temporary.write_text(json.dumps(content, indent=1) + '\n')
  os.replace(temporary, path)


def _temporary(path: pathlib.Path) -> pathlib.Path:
  """Returns a name that no other process uses, on any machine."""
  return path.with_suffix(f'.{uuid.uuid4().hex}.tmp')


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(_CHUNK):
      digest.update(block)
  return digest.hexdigest()
