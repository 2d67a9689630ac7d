"""The tensors of a file of torch, without torch and without unpickling.

A .pt file is a zip archive of raw arrays and of one pickle that says what they
are. Unpickling runs whatever the pickle names. Here its instructions are read
one by one; of those that call something, only the few that describe a tensor
are understood, and any other makes the file be refused.

Files that torch wrote before 1.6 are no archives, but five pickles and the raw
arrays after another.
"""

import functools
import io
import math
import pathlib
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from vit_jax.released import archive
from vit_jax.released.checkpoint import ReleasedError

_DTYPES = {
  'torch BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'torch BoolStorage': np.dtype(bool),
  'torch ByteStorage': np.dtype('u1'),
  'torch CharStorage': np.dtype('i1'),
  'torch DoubleStorage': np.dtype('<f8'),
  'torch FloatStorage': np.dtype('<f4'),
  'torch HalfStorage': np.dtype('<f2'),
  'torch IntStorage': np.dtype('<i4'),
  'torch LongStorage': np.dtype('<i8'),
  'torch ShortStorage': np.dtype('<i2'),
}
# Classes of modules: what they hold is read, nothing of them is looked up.
_MODULES = re.compile(r'__torch__[. ].*|(?:dall_e|torch\.nn\.modules)\.\w+ \w+')
_MOST_TENSORS = 100_000
# The first pickle of a file that is no archive: a number that says so.
_BARE = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_LITERALS = (
  'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE',
  'SHORT_BINUNICODE',
)  # fmt: skip
_TUPLES = {'EMPTY_TUPLE': 0, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list}


# Returns the numbers that tensors are views of: by key, type and how many.
Storage = Callable[[str, np.dtype, int], np.ndarray]


class _Name(NamedTuple):
  """What a pickle names by module and name; it is never looked up."""

  text: str


def is_one(path: pathlib.Path) -> bool:
  """Whether a file is of this kind, by its name."""
  return path.suffix in ('.pkl', '.pt', '.pth')


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], set[str]]:
  """Returns the tensors of a state dict, a TorchScript module or DALL-E's.

  Returns:
    Arrays by name, whose parts dots join, and the names of all classes that
    the file mentions, such as 'QuickGELU'.

  Raises:
    ReleasedError: it is damaged, or asks for anything but tensors.
  """
  try:
    with path.open('rb') as file:
      is_bare = file.read(len(_BARE)) == _BARE
    found, named = (_read_bare if is_bare else _read_archive)(path)
    return _flat(found), {name.rpartition(' ')[2] for name in named}
  except ReleasedError as error:
    raise ReleasedError(f'{path}: {error}') from error
  except (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError,
    RuntimeError, TypeError, ValueError, struct.error, zipfile.BadZipFile,
    zlib.error,
  ) as error:  # fmt: skip
    raise ReleasedError(
      f'{path} is damaged or no archive of torch: {error!r}. Download it again.'
    ) from error


def _read_archive(path: pathlib.Path) -> tuple[Any, set[str]]:
  """Returns what an archive holds, and what its pickle names."""
  with zipfile.ZipFile(path) as file:
    members = file.infolist()
    archive.check_size(path, members)
    root = _root([member.filename for member in members])

    @functools.cache
    def storage(key, dtype, size):
      return _numbers(file.read(f'{root}data/{key}'), key, dtype, size)

    reader = _Reader(storage)
    return reader.run(io.BytesIO(file.read(f'{root}data.pkl'))), reader.named


def _root(names: list[str]) -> str:
  """Returns the folder of the archive, with a slash."""
  roots = [n.removesuffix('data.pkl') for n in names if n.endswith('/data.pkl')]
  if len(roots) != 1:
    raise ReleasedError('it is no zip archive of torch with one data.pkl.')
  return roots[0]


def _read_bare(path: pathlib.Path) -> tuple[Any, set[str]]:
  """Returns what `_read_archive` does of a file of torch before 1.6."""
  storages, left = {}, path.stat().st_size

  def storage(key, dtype, size):
    """Returns where numbers will be: they come after the pickle."""
    nonlocal left
    if key not in storages:
      left -= size * dtype.itemsize
      if left < 0:
        raise ReleasedError(f'storage {key} should be larger than the file.')
      storages[key] = np.empty(size, dtype)
    if (storages[key].dtype, storages[key].size) != (dtype, size):
      raise ReleasedError(f'storage {key} should be of two kinds.')
    return storages[key]

  with path.open('rb') as file:
    readers = [_Reader(storage) for _ in range(5)]
    _, _, system, found, keys = (reader.run(file) for reader in readers)
    if not system['little_endian']:
      raise ReleasedError(
        'its numbers are those of a big-endian machine: save it again on '
        'another.'
      )
    if {*keys} != storages.keys():
      raise ReleasedError('it has other storages than its tensors need.')
    for key in keys:
      numbers = storages[key]
      (size,) = struct.unpack('<q', file.read(8))
      data = file.read(numbers.nbytes)
      numbers[:] = _numbers(data, key, numbers.dtype, numbers.size)
      if size != numbers.size:
        raise ReleasedError(
          f'storage {key} should have {numbers.size:,} numbers, but says that '
          f'it has {size:,}.'
        )
  return found, readers[3].named


def _numbers(data: bytes, key: str, dtype: np.dtype, size: int) -> np.ndarray:
  """Returns the numbers of a storage, all that its tensors expect."""
  if len(data) != size * dtype.itemsize:
    raise ReleasedError(
      f'storage {key} should have {size:,} numbers of {dtype}, but has '
      f'{len(data):,} bytes.'
    )
  return np.frombuffer(data, dtype)


class _Reader:
  """Follows the instructions of a pickle, as far as they describe tensors.

  Attributes:
    named: what the pickle has named.
  """

  def __init__(self, storage: Storage):
    self.named: set[str] = set()
    self._storage = storage
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def run(self, pickle: BinaryIO) -> Any:
    """Returns nested dicts (of modules, too) and lists, with arrays."""
    for opcode, argument, _ in pickletools.genops(pickle):
      if opcode.name == 'STOP':
        return self._stack.pop()
      self._step(opcode.name, argument)
    raise ReleasedError('its pickle has no end.')

  def _step(self, name: str, argument: Any) -> None:
    """Follows one instruction."""
    stack = self._stack
    if name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
      stack.append(argument)
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name in _TUPLES:
      stack.append(tuple(self._pop(_TUPLES[name])))
    elif name == 'TUPLE':
      stack.append(tuple(self._pop_mark()))
    elif name == 'MARK':
      self._marks.append(len(stack))
    elif name in ('BINPUT', 'LONG_BINPUT'):
      self._memo[argument] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(self._memo[argument])
    elif name in ('APPEND', 'APPENDS'):
      items = self._pop(1) if name == 'APPEND' else self._pop_mark()
      self._top(list).extend(items)
    elif name in ('SETITEM', 'SETITEMS'):
      items = self._pop(2) if name == 'SETITEM' else self._pop_mark()
      self._top(dict).update(zip(items[::2], items[1::2]))
    elif name == 'GLOBAL':
      self.named.add(argument)
      stack.append(_Name(argument))
    elif name == 'BINPERSID':
      stack.append(self._open(*stack.pop()))
    elif name in ('REDUCE', 'NEWOBJ'):
      called, arguments = self._pop(2)
      stack.append(self._call(called, arguments))
    elif name == 'BUILD':
      (state,) = self._pop(1)
      self._top(dict).update(state)
    elif name != 'PROTO':
      raise ReleasedError(
        f'its pickle has the instruction {name}, which no tensor needs; '
        'following it could run any code, so the file is refused.'
      )

  def _pop(self, count: int) -> list[Any]:
    if count > len(self._stack):
      raise ReleasedError('its pickle takes more than it has.')
    at = len(self._stack) - count
    items, self._stack[at:] = self._stack[at:], []
    return items

  def _pop_mark(self) -> list[Any]:
    return self._pop(len(self._stack) - self._marks.pop())

  def _top(self, kind: type) -> Any:
    """Returns what is changed in place, which must be our own."""
    if type(self._stack[-1]) is not kind:
      raise ReleasedError(f'its pickle changes what is no {kind.__name__}.')
    return self._stack[-1]

  def _open(
    self,
    kind: str,
    storage: _Name,
    key: str,
    device: str,
    size: int,
    part: None = None,
  ) -> np.ndarray:
    """Returns the numbers that tensors are views of."""
    del device
    dtype = _DTYPES.get(storage.text)
    # Only torch before 0.4 has named parts of a storage.
    if kind != 'storage' or dtype is None or part is not None:
      raise ReleasedError(f'it stores {storage.text}, which is not known.')
    return self._storage(key, dtype, size)

  def _call(self, called: Any, arguments: Any) -> Any:
    """Returns what a call would, if it is one of the few that may be."""
    name = called.text if isinstance(called, _Name) else None
    if name == 'torch._utils _rebuild_tensor_v2':
      return _view(*arguments[:4])
    if name == 'torch._utils _rebuild_parameter':
      return arguments[0]
    # What TorchScript says of the type of a list or a dict.
    if name and name.startswith('torch.jit._pickle '):
      return arguments[0]
    # A class of the archive: its attributes are what matters.
    is_module = name and _MODULES.fullmatch(name)
    if (is_module or name == 'collections OrderedDict') and arguments == ():
      return {}
    # Attributes of a module that say nothing of its tensors.
    if name in ('torch device', '__builtin__ set', 'builtins set'):
      return None
    raise ReleasedError(
      f'it asks to call {name or called!r}, which could run any code, so it is '
      'refused.'
    )


def _view(
  storage: np.ndarray, offset: int, shape: tuple, strides: tuple
) -> np.ndarray:
  """Returns the part of a storage that a tensor is."""
  for number in (offset, *shape, *strides):
    if type(number) is not int or number < 0:
      raise ReleasedError(f'a tensor has {number!r} for a size or a stride.')
  if len(shape) != len(strides):
    raise ReleasedError(f'a tensor has sizes {shape}, but strides {strides}.')
  if 0 in shape:
    return np.zeros(shape, storage.dtype)
  last = offset + sum((n - 1) * step for n, step in zip(shape, strides))
  if last >= storage.size or math.prod(shape) > storage.size:
    raise ReleasedError(
      f'a tensor of shape {shape} reaches beyond its {storage.size:,} numbers.'
    )
  steps = [step * storage.itemsize for step in strides]
  return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


def _flat(found: Any) -> dict[str, np.ndarray]:
  """Returns the arrays of nested dicts by name; nothing else is wanted."""
  result, left, seen = {}, [('', found)], 0
  while left:
    prefix, values = left.pop()
    for name, value in values.items():
      seen += 1
      if isinstance(value, np.ndarray):
        result[f'{prefix}{name}'] = value
      elif isinstance(value, dict):
        left.append((f'{prefix}{name}.', value))
    if seen > _MOST_TENSORS:
      raise ReleasedError(f'it has more than {_MOST_TENSORS:,} parts.')
  return result
