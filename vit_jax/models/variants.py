"""Sizes of a model: by the name of a variant, by fields, or by both."""

from collections.abc import Mapping
from typing import Any, NamedTuple


def size_and_patch(
  model: str, name: str, table: Mapping[str, NamedTuple]
) -> dict[str, int]:
  """Returns what a name such as 'B/16' stands for, `patch_size` included.

  Args:
    model: what it is called in messages.
    name: a key of `table` and a patch size.
    table: sizes by name.
  """
  size, _, patch = name.partition('/')
  if size not in table or not patch.isdecimal() or not int(patch):
    raise ValueError(
      f'{name!r} is not a {model} variant. Expected a size and a patch size, '
      f'such as B/16; sizes: {", ".join(table)}.'
    )
  return {**table[size]._asdict(), 'patch_size': int(patch)}


def with_fields(
  model: str, named: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the sizes of a variant, and those given in its place.

  Args:
    model: what it is called in messages.
    named: the sizes of the variant, if there is one.
    fields: every size of the model, None where it is not given.

  Raises:
    ValueError: a size that is not known, or is less than 1.
  """
  given = {name: size for name, size in fields.items() if size is not None}
  sizes = {**named, **given}
  if missing := [name for name in fields if name not in sizes]:
    raise ValueError(
      f'The size of this {model} is not known: give variant, or '
      f'{", ".join(missing)}.'
    )
  for name, size in sizes.items():
    if isinstance(size, int) and size < 1:
      raise ValueError(f'{name} is {size}, expected 1 or more.')
  return sizes
