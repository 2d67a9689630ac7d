"""Files inside a tar archive, read at any place without unpacking it.

Names in an archive are only ever compared; none is used as a path.
"""

import contextlib
import gzip
import io
import os
import pathlib
import tarfile
import uuid
import zipfile
import zlib
from typing import Any

import numpy as np

# A packed archive has no places to jump to: it is held in memory whole.
_MAX_UNPACKED = 2**30
_GZIP = b'\x1f\x8b'
_BLOCK = 512


class Archive:
  """A tar archive; picklable, safe to read from threads.

  Attributes:
    path: The archive.
  """

  def __init__(self, path: str | os.PathLike):
    """Opens an archive.

    Args:
      path: A .tar, which is read where it lies, or a .tar.gz of up to 1 GiB
        unpacked, which each process holds in memory.

    Raises:
      FileNotFoundError: If there is none.
      ValueError: If it is damaged, or packed and too large.
    """
    self.path = os.fspath(path)
    with open(self.path, 'rb') as file:
      packed = file.read(len(_GZIP)) == _GZIP
    self._content = _unpack(self.path) if packed else None

  def read(self, offset: int, size: int) -> bytes:
    """Returns `size` bytes from `offset`; OSError if there are fewer."""
    if self._content is not None:
      content = self._content[offset : offset + size]
    else:
      with open(self.path, 'rb') as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
      raise OSError(f'{self.path} is shorter than it was when it was opened')
    return content

  def files(self) -> dict[str, tuple[int, int]]:
    """Returns offset and size of each file by its name, in their order.

    What it finds in a .tar it keeps beside it as NAME.tar.index.npz, if the
    folder can be written, and finds it there as long as the archive has the
    same size and time.

    Raises:
      ValueError: If the archive is damaged or cut off, or holds a name twice.
    """
    if self._content is not None:
      return _scan(io.BytesIO(self._content), self.path)
    kept = pathlib.Path(self.path + '.index.npz')
    status = os.stat(self.path)
    version = [status.st_size, status.st_mtime_ns]
    found = _load_index(kept, version)
    if found is None:
      with open(self.path, 'rb') as file:
        found = _scan(file, self.path)
      _save_index(kept, version, found)
    return found

  def __reduce__(self):
    return Archive, (self.path,)


def _unpack(path: str) -> bytes:
  """Returns what a packed archive holds."""
  try:
    with gzip.open(path) as file:
      content = file.read(_MAX_UNPACKED + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f'{path} is damaged ({error}); get it again') from error
  if len(content) > _MAX_UNPACKED:
    raise ValueError(
      f'{path} is larger than {_MAX_UNPACKED:,} bytes unpacked, too large to '
      "hold in memory; unpack it with 'gunzip --keep' and name the .tar"
    )
  return content


def _scan(file: Any, path: str) -> dict[str, tuple[int, int]]:
  """Finds the files in an open archive."""
  found: dict[str, tuple[int, int]] = {}
  try:
    with tarfile.open(fileobj=file, mode='r:') as archive:
      for member in archive:
        if not member.isreg():
          continue
        if member.issparse() or member.size < 0:
          raise ValueError(
            f'{path}: {member.name!r} is stored with holes, or has no size; '
            'write the archive again'
          )
        if member.name in found:
          raise ValueError(f'{path} holds {member.name!r} twice')
        found[member.name] = (member.offset_data, member.size)
        # Every member is remembered otherwise.
        archive.members = []
      end = archive.offset
  except tarfile.TarError as error:
    raise ValueError(
      f'{path} is not a tar archive, or damaged ({error})'
    ) from error
  # tarfile takes a damaged header for the end, which is a block of zeros.
  file.seek(end)
  if file.read(_BLOCK) != bytes(_BLOCK):
    raise ValueError(
      f'{path} is cut off or damaged at byte {end:,}, after {len(found)} '
      'files; get it again'
    )
  return found


def _load_index(
  kept: pathlib.Path, version: list[int]
) -> dict[str, tuple[int, int]] | None:
  """Returns what was kept of this version of an archive, if anything was."""
  try:
    with np.load(kept) as arrays:
      if arrays['version'].tolist() != version:
        return None
      names = arrays['names'].tobytes().decode('utf-8', 'surrogateescape')
      names = names.split('\0') if names else []
      places = zip(arrays['offsets'].tolist(), arrays['sizes'].tolist())
      return dict(zip(names, places, strict=True))
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
    return None


def _save_index(
  kept: pathlib.Path, version: list[int], found: dict[str, tuple[int, int]]
) -> None:
  """Keeps what was found, all at once: others may be doing the same."""
  names = '\0'.join(found).encode('utf-8', 'surrogateescape')
  offsets, sizes = np.array(list(found.values()), np.int64).reshape(-1, 2).T
  # Opened by name, not by `tempfile`, which lets nobody else read it.
  temporary = kept.with_name(f'{kept.name}.{uuid.uuid4().hex}.tmp')
  # A folder that cannot be written: the next process looks again.
  with contextlib.suppress(OSError):
    try:
      with temporary.open('xb') as file:
        np.savez(
          file,
          version=np.array(version),
          names=np.frombuffer(names, np.uint8),
          offsets=offsets,
          sizes=sizes,
        )
      os.replace(temporary, kept)
    finally:
      temporary.unlink(missing_ok=True)
