"""Captions in a table beside images, in a folder or inside a tar archive.

A table is a .jsonl file, an object a line, or a .tsv file whose first line
names its columns. Each row names an image file, relative to the table, and one
or several captions, and may name the split that it belongs to.
"""

import functools
import json
import os
import pathlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vit_jax.data import tar_files

# Names that such tables use; the first that a row has counts.
_FILE_FIELDS = ('file', 'file_name', 'filepath')
_CAPTION_FIELDS = ('captions', 'caption', 'text', 'title')
_TABLES = ('metadata.jsonl', 'metadata.tsv', 'captions.jsonl', 'captions.tsv')


class Images(Protocol):
  """Image files by their names in a table."""

  def name(self, file: str) -> str:
    """Returns what a person calls the file."""
    ...

  def read(self, file: str) -> bytes: ...


class FolderImages:
  """Image files below a folder."""

  def __init__(self, folder: str):
    self._folder = folder

  def name(self, file: str) -> str:
    return os.path.join(self._folder, file)

  def read(self, file: str) -> bytes:
    with open(self.name(file), 'rb') as opened:
      return opened.read()


class ArchiveImages:
  """Image files in a tar archive, below the folder of its table."""

  def __init__(self, archive: tar_files.Archive, folder: str):
    self._archive = archive
    self._folder = folder
    self._files = archive.files()

  def name(self, file: str) -> str:
    return f'{self._archive.path}: {posixpath.join(self._folder, file)}'

  def read(self, file: str) -> bytes:
    return self._archive.read(*self.place(file))

  def place(self, file: str) -> tuple[int, int]:
    """Returns offset and size of a file; ValueError if there is none."""
    inside = posixpath.normpath(posixpath.join(self._folder, file))
    if inside not in self._files:
      raise ValueError(f'{self._archive.path} holds no {inside!r}')
    return self._files[inside]


class CaptionFiles:
  """One split of a table of images and captions; see `open_captions`."""

  def __init__(
    self, images: Images, columns: Sequence[str], lines: Sequence[bytes]
  ):
    """Keeps rows as they were written.

    Args:
      images: What rows name.
      columns: Names of the columns of a .tsv; of a .jsonl, none.
      lines: The rows.
    """
    self._images = images
    self._columns = tuple(columns)
    # One block of bytes rather than millions of strings: cheap to send to
    # worker processes, and small in each.
    self._rows = b''.join(lines)
    self._ends = np.cumsum([0] + [len(line) for line in lines])

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> dict[str, Any]:
    fields = self.fields(index)
    image = self._images.read(_first(fields, _FILE_FIELDS))
    return {'image': image, 'texts': captions_of(fields)}

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the captions of a record, without reading its image."""
    return captions_of(self.fields(index))

  def fields(self, index: int) -> dict[str, Any]:
    """Returns the whole row of a record."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    line = self._rows[self._ends[index] : self._ends[index + 1]]
    return _parse(line, self._columns)

  def name(self, index: int) -> str:
    return self._images.name(_first(self.fields(index), _FILE_FIELDS))


def captions_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the captions that a row of a table, or a .json file, holds.

  Raises:
    ValueError: If it has none, or what should be captions is something else.
  """
  found = _first(fields, _CAPTION_FIELDS)
  captions = [found] if isinstance(found, str) else found
  if not (
    isinstance(captions, list)
    and captions
    and all(isinstance(caption, str) for caption in captions)
  ):
    raise ValueError(
      f'{found!r} is neither a caption nor a list of one or more captions'
    )
  return tuple(captions)


def open_captions(path: str) -> dict[str, Callable[[], CaptionFiles]]:
  """Returns how to open each split of a table of images and captions.

  Args:
    path: A .jsonl or .tsv file; a folder with a file metadata.jsonl,
      metadata.tsv, captions.jsonl or captions.tsv; or a .tar or .tar.gz with
      one such file in it. Rows have the image in 'file', 'file_name' or
      'filepath', and the text in 'captions' (a list), 'caption', 'text' or
      'title'. The split is in 'split'; if no row has one, the only split is
      called 'all'.

  Raises:
    FileNotFoundError: If there is no such file, or no table in it.
    ValueError: If a row is malformed, or an archive lacks an image; says which
      and where.
  """
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise FileNotFoundError(
      f'there is no {root}: expected a folder, a .jsonl, .tsv, .tar or .tar.gz'
    )
  if root.is_dir():
    inside = [name for name in _TABLES if (root / name).exists()]
    root = root / _one_table(inside, root)
  if root.suffix in ('.jsonl', '.tsv'):
    content, images = root.read_bytes(), FolderImages(str(root.parent))
    columns, rows = _sort_rows(content, str(root), images)
  else:
    archive = tar_files.Archive(root)
    files = archive.files()
    table = _one_table(
      [name for name in files if posixpath.basename(name) in _TABLES], root
    )
    images = ArchiveImages(archive, posixpath.dirname(table))
    content, where = archive.read(*files[table]), f'{root}: {table}'
    columns, rows = _sort_rows(content, where, images)
  return {
    split: functools.partial(CaptionFiles, images, columns, lines)
    for split, lines in rows.items()
  }


def _one_table(names: list[str], place: pathlib.Path) -> str:
  """Returns the only name; FileNotFoundError if there is another number."""
  if len(names) != 1:
    raise FileNotFoundError(
      f'{place} holds {" and ".join(names) or "no table of captions"}, '
      f'expected exactly one of {", ".join(_TABLES)}'
    )
  return names[0]


def _sort_rows(
  content: bytes, where: str, images: Images
) -> tuple[list[str], dict[str, list[bytes]]]:
  """Checks each row of a table; returns columns, and the rows by split."""
  columns: list[str] = []
  rows: dict[str, list[bytes]] = {}
  for number, line in enumerate(content.split(b'\n'), 1):
    line = line.rstrip(b'\r')
    if not line:
      continue
    try:
      if where.endswith('.tsv') and not columns:
        columns = line.decode('utf-8').split('\t')
        for names in (_FILE_FIELDS, _CAPTION_FIELDS):
          _first(columns, names)
        continue
      fields = _parse(line, columns)
      _check_row(fields, images)
    except ValueError as error:
      raise ValueError(f'line {number} of {where}: {error}') from error
    rows.setdefault(fields.get('split', 'all'), []).append(line)
  if not rows:
    raise ValueError(f'{where} has no row')
  return columns, rows


def _check_row(fields: Mapping[str, Any], images: Images) -> None:
  """Raises ValueError unless a row names an image, captions and a split."""
  captions_of(fields)
  file = _first(fields, _FILE_FIELDS)
  for value in (file, fields.get('split', 'all')):
    if not (isinstance(value, str) and value):
      raise ValueError(f'{value!r} is not a name')
  # Whether a file is in a folder shows when it is read: asking for millions
  # would take minutes.
  if isinstance(images, ArchiveImages):
    images.place(file)


def _parse(line: bytes, columns: Sequence[str]) -> dict[str, Any]:
  """Returns a row; ValueError if it is malformed."""
  text = line.decode('utf-8')
  if not columns:
    fields = json.loads(text)
    if not isinstance(fields, dict):
      raise ValueError(f'{text[:80]!r} is not an object, {{...}}')
    return fields
  values = text.split('\t')
  if len(values) != len(columns):
    raise ValueError(
      f'{len(values)} columns, but the first line names {len(columns)}'
    )
  return dict(zip(columns, values))


def _first(fields: Any, names: Sequence[str]) -> Any:
  """Returns the field, or from a list the name, that comes first of `names`."""
  for name in names:
    if name in fields:
      return fields[name] if isinstance(fields, Mapping) else name
  raise ValueError(
    f'none of {", ".join(names)} among the fields {", ".join(fields)}'
  )
