"""From the tensors of a file to ours and back, by one table for both ways."""

import math
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax.released.checkpoint import ReleasedError

Shape = tuple[int, ...]
_ROWS_SHOWN = 40
_TORCH_LEAVES = {
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}


class Slot(typing.NamedTuple):
  """Where a file has one of our parameters, and how it lies there.

  Attributes:
    name: in the file.
    view: shape that ours is given, before
    axes: its axes are put in this order.
  """

  name: str
  view: Shape
  axes: Shape

  @property
  def shape(self) -> Shape:
    """Shape in the file."""
    return tuple(self.view[axis] for axis in self.axes)


def slot(name: str, view: Sequence[int], axes: Sequence[int] = ()) -> Slot:
  """Returns a slot; by default axes stay as they are."""
  return Slot(name, tuple(view), tuple(axes) or tuple(range(len(view))))


def torch_slot(path: str, shape: Shape, names: Mapping[str, str]) -> Slot:
  """Returns where a file of torch has a parameter: matrices are transposed.

  Args:
    path: ours.
    shape: ours.
    names: theirs of our modules. A name of a whole path is that of a tensor
      that lies as ours does.
  """
  module, _, leaf = rename(path, names).partition('/')
  if not leaf:
    return slot(module, shape)
  if leaf != 'kernel':
    leaf = _TORCH_LEAVES.get(leaf, leaf)
    return slot(f'{module}.{leaf}', (math.prod(shape),))
  if len(shape) == 4:
    return slot(f'{module}.weight', shape, (3, 2, 0, 1))
  inputs = 2 if path.endswith('attention/out/kernel') else 1
  view = math.prod(shape[:inputs]), math.prod(shape[inputs:])
  return slot(f'{module}.weight', view, (1, 0))


def rename(path: str, names: Mapping[str, str]) -> str:
  """Replaces the longest beginning of a path (by whole parts) in `names`."""
  parts = path.split('/')
  for length in range(len(parts), 0, -1):
    start = '/'.join(parts[:length])
    if start in names:
      return '/'.join([names[start], *parts[length:]])
  return path


def check(
  expected: Mapping[str, Shape], found: Mapping[str, Shape], what: str
) -> None:
  """Raises ReleasedError with a table of names that are not as expected.

  Args:
    expected: shapes by name.
    found: shapes by name.
    what: the model that the names are expected of.
  """
  names = [name for name in expected if expected[name] != found.get(name)]
  names += [name for name in found if name not in expected]
  if not names:
    return
  rows = [('name', 'expected', 'found')]
  rows += [
    (name, str(expected.get(name, 'nothing')), str(found.get(name, 'nothing')))
    for name in names[:_ROWS_SHOWN]
  ]
  left, middle = (max(len(row[i]) for row in rows) for i in range(2))
  lines = [f'  {a:{left}}  {b:{middle}}  {c}' for a, b, c in rows]
  if len(names) > _ROWS_SHOWN:
    lines.append(f'  ... and {len(names) - _ROWS_SHOWN} more')
  raise ReleasedError(
    f'{len(names)} tensors do not fit {what}:\n' + '\n'.join(lines)
  )


def to_params(
  tensors: Mapping[str, np.ndarray],
  slots: Mapping[str, Slot],
  shapes: Mapping[str, Shape],
  what: str,
) -> dict[str, np.ndarray]:
  """Returns our parameters from the tensors of a file.

  Args:
    tensors: by name in the file.
    slots: by our path.
    shapes: by our path.
    what: the model that is expected, for the message.

  Raises:
    ReleasedError: names or shapes are not exactly those of the slots.
  """
  check(
    {slot.name: slot.shape for slot in slots.values()},
    {name: tensor.shape for name, tensor in tensors.items()},
    what,
  )
  return {
    path: np.asarray(
      tensors[slot.name].transpose(np.argsort(slot.axes)).reshape(shapes[path]),
      order='C',
    )
    for path, slot in slots.items()
  }


def to_tensors(
  params: Mapping[str, np.ndarray],
  slots: Mapping[str, Slot],
  shapes: Mapping[str, Shape],
  what: str,
) -> dict[str, np.ndarray]:
  """Returns the tensors of a file from our parameters; see `to_params`."""
  found = {path: tensor.shape for path, tensor in params.items()}
  check({path: shapes[path] for path in slots}, found, what)
  return {
    slot.name: np.asarray(
      params[path].reshape(slot.view).transpose(slot.axes), order='C'
    )
    for path, slot in slots.items()
  }
