"""Labels from what captions come with: a field of each record as its class.

field:group:captions:emoji64.tar.gz where style=noto
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_jax.data import caption_filter, captions

# Records whose fields are looked at, at most.
_MOST = 10_000_000


class FieldSource:
  """Images of a source of captions, labelled by one of their fields.

  Attributes:
    class_names: The values of the field, sorted.
    labels: The label of each record.
  """

  def __init__(
    self,
    source: captions.CaptionSource,
    field: str,
    class_names: Sequence[str],
  ):
    self._source = source
    self.class_names = tuple(class_names)
    label = {name: number for number, name in enumerate(self.class_names)}
    self.labels = np.array(
      [label[_value(source, index, field)] for index in range(len(source))]
    )

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = self._source[index]['image']
    return {'image': image, 'label': int(self.labels[index])}

  def name(self, index: int) -> str:
    return self._source.name(index)


def fields(argument: str) -> dict[str, Callable[[], FieldSource]]:
  """Returns how to open each split of 'NAME:SPEC'.

  Args:
    argument: Name of the field and the source of captions.

  Raises:
    ValueError: If the source is unknown, or has no such field.
  """
  field, _, spec = argument.partition(':')
  openers = captions.openers(spec)

  @functools.cache
  def class_names() -> tuple[str, ...]:
    # Of all splits and records, so that labels are the same for any part.
    whole = captions.openers(captions.without_conditions(spec))
    sources = [open_split() for open_split in whole.values()]
    return tuple(
      sorted({
        _value(source, index, field)
        for source in sources
        if len(source) <= _MOST
        for index in range(len(source))
      })
    )  # fmt: skip

  def open_split(name: str) -> FieldSource:
    if len(source := openers[name]()) > _MOST:
      raise ValueError(
        f'{name} of {spec!r} has {len(source):,} records: too many to look at '
        'each for its label'
      )
    return FieldSource(source, field, class_names())

  return {name: functools.partial(open_split, name) for name in openers}


def _value(source: captions.CaptionSource, index: int, field: str) -> str:
  found = source.fields(index)
  if field not in found:
    raise caption_filter.unknown_field(source, index, field, found)
  return str(found[field])
