"""Files of named tensors: read with suspicion, written whole or not at all.

Nothing in a file is ever executed: there is no pickle on any path.
"""

import contextlib
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.released.checkpoint import ReleasedError

# Weights hardly compress. What unpacks to more than this, and to more than
# that many times its size, was made to fill somebody's memory.
_SMALL = 2**30
_MOST_EXPANSION = 20
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
_FLOATS = ('float16', 'bfloat16', 'float32', 'float64')


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of a NumPy archive by name, as they are stored.

  Raises:
    ReleasedError: it is damaged, holds Python objects, or would unpack to far
      more than its size.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      members = archive.infolist()
      check_size(path, members)
      arrays = {
        member.filename.removesuffix('.npy'): _read_member(archive, member)
        for member in members
      }
  except ReleasedError as error:
    raise ReleasedError(f'{path}: {error}') from error
  except (
    EOFError, NotImplementedError, RuntimeError, ValueError, struct.error,
    zipfile.BadZipFile, zlib.error,
  ) as error:  # fmt: skip
    raise ReleasedError(
      f'{path} is damaged or no NumPy archive: {error}. Download it again.'
    ) from error
  if len(arrays) < len(members):
    raise ReleasedError(f'{path} holds two arrays of the same name.')
  return arrays


def check_size(path: pathlib.Path, members: list[zipfile.ZipInfo]) -> None:
  """Raises ReleasedError for an archive made to fill somebody's memory."""
  # No more is read of a member than it declares here.
  unpacked, packed = sum(m.file_size for m in members), path.stat().st_size
  if unpacked > max(_SMALL, _MOST_EXPANSION * packed):
    raise ReleasedError(
      f'{packed / 2**20:,.1f} MiB would unpack to {unpacked / 2**20:,.0f} MiB. '
      'Weights do not compress like this: it is not a checkpoint.'
    )


def _read_member(
  archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> np.ndarray:
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
      raise ReleasedError(f'{member.filename} has an unknown version {version}')
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
      raise ReleasedError(
        f'{member.filename} holds Python objects, which would have to be '
        'unpickled; that can run any code, so it is refused.'
      )
    # Before anything of that shape is allocated.
    size = math.prod(shape) * dtype.itemsize
    if size != member.file_size - file.tell():
      raise ReleasedError(
        f'{member.filename} says its shape is {shape}, of {size:,} bytes, but '
        f'holds {member.file_size - file.tell():,}.'
      )
    data = file.read()  # To the end, which checks the checksum.
  return np.frombuffer(data, dtype).reshape(
    shape, order='F' if fortran else 'C'
  )


def read_safetensors(
  path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays of a .safetensors file, as stored, and its metadata."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      names = file.keys()
      arrays = {name: file.get_tensor(name) for name in names}
      return arrays, file.metadata() or {}
  except (safetensors.SafetensorError, TypeError) as error:
    raise ReleasedError(
      f'{path} is damaged or no .safetensors file: {error}. Download it again.'
    ) from error


def as_float32(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the tensors in float32, and a note if they were not.

  Only float64 is rounded by that.
  """
  result, stored = {}, set()
  for name, tensor in tensors.items():
    if tensor.dtype == np.dtype('V2'):  # How NumPy's format knows bfloat16.
      tensor = tensor.view(ml_dtypes.bfloat16)
    kind = tensor.dtype.newbyteorder('=').name
    if kind not in _FLOATS:
      raise ReleasedError(
        f'{name} holds {tensor.dtype}, expected one of {", ".join(_FLOATS)}.'
      )
    stored.add(kind)
    result[name] = tensor.astype(np.float32, order='C', copy=False)
  others = sorted(stored - {'float32'})
  if not others:
    return result, []
  return result, [f'Stored as {", ".join(others)}; made float32.']


def write_npz(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray], overwrite: bool
) -> None:
  """Writes arrays by name as a NumPy archive."""
  with replacing(path, overwrite) as temporary, temporary.open('wb') as file:
    np.savez(file, **tensors)


def write_safetensors(
  path: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  overwrite: bool,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes arrays by name, marked as PyTorch's (transformers wants that)."""
  metadata = {'format': 'pt', **(metadata or {})}
  with replacing(path, overwrite) as temporary:
    safetensors.numpy.save_file(tensors, temporary, metadata=metadata)


def check_new(path: pathlib.Path, overwrite: bool) -> None:
  """Raises FileExistsError if a file would be lost."""
  if path.exists() and not overwrite:
    raise FileExistsError(
      f'{path} is there already. Choose another name, or ask '
      'for it to be replaced (--overwrite, overwrite=True).'
    )


@contextlib.contextmanager
def replacing(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """Yields a name to write to; it becomes `path` when all went well."""
  check_new(path, overwrite)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    yield temporary
    with temporary.open('rb') as file:
      os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)
