"""What every source of images with captions can do."""

from collections.abc import Mapping
from typing import Any, Protocol


class CaptionSource(Protocol):
  """Random access to images with captions; picklable, read from threads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns one record.

    Args:
      index: From 0 to `len(self) - 1`.

    Returns:
      'image': uint8 [height, width, channels], or the bytes of an image file;
      'texts': tuple of one or more captions. Sources may add more.
    """
    ...

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the captions of a record, without reading its image."""
    ...

  def fields(self, index: int) -> Mapping[str, Any]:
    """Returns what else is known of a record, by name."""
    ...

  def name(self, index: int) -> str:
    """Returns what a person calls the record."""
    ...


def readable_captions(source: CaptionSource, index: int) -> tuple[str, ...]:
  """Returns the captions of a record; none of one that cannot be read.

  For who looks at the captions of many: the record remains, and who reads it
  whole reports it as broken.
  """
  try:
    return source.captions(index)
  except (OSError, ValueError):
    return ()
