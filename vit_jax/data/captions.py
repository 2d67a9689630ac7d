"""Sources of images with captions, found by name.

A source is named by a spec:

  shapes:pixels=32   coloured shapes, drawn by code
  captions:PATH      a table of captions beside images, in a folder or a .tar
  shards:PATH        .tar files of the WebDataset layout
  tfds_captions:NAME a data set prepared by TensorFlow Datasets as ArrayRecord
  codes:DIR          codes of the images of another, see `code_shards`

Only records with some values of their other fields are taken where a spec ends
in conditions, such as ' where style!=noto, group=food'; '~' in place of '='
finds a regular expression, which has no comma. Several specs are joined with
' + '.
"""

import bisect
import difflib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_jax.data import (
  caption_files,
  caption_filter,
  caption_shards,
  code_files,
  code_shards,
  shapes,
  splits,
  tfds_captions,
)
from vit_jax.data.caption_source import CaptionSource

# Begins the conditions of a spec.
_WHERE = ' where '
# Each returns, for what follows the colon, how to open each split there is.
FAMILIES = {
  'shapes': shapes.shapes,
  'captions': caption_files.open_captions,
  'shards': caption_shards.open_shards,
  'tfds_captions': tfds_captions.tfds_captions,
  'codes': code_shards.open_codes,
}


class JoinedCaptions:
  """Ranges of other sources, one after the other.

  Attributes:
    parts: Pairs of a source and the range of its records to show.
  """

  def __init__(self, parts: Sequence[tuple[CaptionSource, range]]):
    self.parts = tuple(parts)
    lengths = [len(indices) for _, indices in self.parts]
    self._ends = list(itertools.accumulate(lengths))

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> dict[str, Any]:
    source, index = self._locate(index)
    return source[index]

  def captions(self, index: int) -> tuple[str, ...]:
    source, index = self._locate(index)
    return source.captions(index)

  def fields(self, index: int) -> Mapping[str, Any]:
    source, index = self._locate(index)
    return source.fields(index)

  def name(self, index: int) -> str:
    source, index = self._locate(index)
    return source.name(index)

  def _locate(self, index: int) -> tuple[CaptionSource, int]:
    """Returns which source holds a record, and the record's index in it."""
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    part = bisect.bisect_right(self._ends, index)
    source, indices = self.parts[part]
    return source, indices[index - self._ends[part]]


def open_source(spec: str, split: str) -> CaptionSource:
  """Opens a source.

  Args:
    spec: What to read: 'shapes:...', 'captions:PATH', 'shards:PATH', or
      several joined with ' + '.
    split: Which part of it, such as 'train', 'train[:99%]' or 'train+test'
      (see `splits`); of a joined spec, the same part of each.

  Returns:
    The source.

  Raises:
    ValueError: If the spec or the split is unknown, or files are malformed.
    FileNotFoundError: If the data is not there.
  """
  parts = []
  for one in spec.split(' + '):
    found = openers(one.strip())
    opened: dict[str, CaptionSource] = {}
    for part in splits.parse_split(split):
      if part.name not in found:
        raise splits.unknown_split(part.name, sorted(found), one)
      if part.name not in opened:
        opened[part.name] = found[part.name]()
      source = opened[part.name]
      parts.append((source, part.resolve(len(source))))
  if len(parts) == 1 and len(parts[0][1]) == len(parts[0][0]):
    return parts[0][0]
  return JoinedCaptions(parts)


def is_known(spec: str) -> bool:
  """Returns whether a spec, or each that it joins, is of this kind."""
  families = [one.strip().partition(':')[0] for one in spec.split(' + ')]
  return all(family in FAMILIES for family in families)


def about_codes(spec: str, split: str) -> code_files.About | None:
  """Returns what is known of codes in place of images; None of images.

  Args:
    spec: Of one or several sources.
    split: Which part of it.

  Raises:
    ValueError: If images and codes are joined, or codes of several kinds.
    FileNotFoundError: If they are not there.
  """
  found = set()
  for one in spec.split(' + '):
    family, _, path = without_conditions(one.strip()).partition(':')
    for part in splits.parse_split(split):
      is_codes = family == 'codes'
      found.add(
        code_shards.read_about(path, part.name).kind() if is_codes else None
      )
  if len(found) > 1:
    raise ValueError(
      f'{spec!r} joins what does not belong together: images and codes, or '
      'codes that differ in their discrete VAE or in what it has read'
    )
  return found.pop()


def without_conditions(spec: str) -> str:
  """Returns the spec of all the records that another chooses from."""
  return spec.partition(_WHERE)[0]


def openers(spec: str) -> Mapping[str, Callable[[], CaptionSource]]:
  """Returns how to open each split of one spec, without ' + '.

  Raises:
    ValueError: If it is unknown or malformed.
  """
  spec, _, conditions = spec.partition(_WHERE)
  family, colon, argument = spec.partition(':')
  if family not in FAMILIES:
    near = difflib.get_close_matches(family, FAMILIES, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise ValueError(
      f'unknown source {spec!r}: sources of captions are '
      f'{", ".join(FAMILIES)}{hint}'
    )
  if not argument and (colon or family != 'shapes'):
    raise ValueError(f"bad source {spec!r}: write '{family}:...'")
  found = FAMILIES[family](argument)
  if not conditions:
    return found
  where = tuple(one.strip() for one in conditions.split(','))
  rules = caption_filter.Rules(where=where)
  return {
    split: functools.partial(_filtered, open_split, rules)
    for split, open_split in found.items()
  }


def _filtered(
  open_split: Callable[[], CaptionSource], rules: caption_filter.Rules
) -> CaptionSource:
  return caption_filter.FilteredSource(open_split(), rules)
