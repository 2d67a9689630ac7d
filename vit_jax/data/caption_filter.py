"""Leaving out records whose captions or images are not fit to learn from."""

import collections
import dataclasses
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.caption_source import CaptionSource

_NO_LETTERS = re.compile('[^A-Za-z]+')
_CONDITION = re.compile(r'(\w+)(!?)([=~])(.*)')


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a record has to be like; the defaults let everything pass."""

  # Characters of a caption, at least and at most.
  characters: tuple[int, float] = (0, float('inf'))
  # Least share of a caption's characters, spaces apart, that are Latin
  # letters: a plain test for language, and against file names and numbers.
  latin: float = 0.0
  # A regular expression; captions that it is found in are left out.
  without: str = ''
  # Largest ratio of the longer side of an image to the shorter one.
  aspect: float = float('inf')
  # Conditions on other fields: 'style=noto', 'style!=noto', and with a regular
  # expression that is found in them or not, 'name~^cat', 'name!~^cat'.
  where: tuple[str, ...] = ()

  def __post_init__(self):
    low, high = self.characters
    if not 0 <= low <= high:
      raise ValueError(
        f'characters is {self.characters}, expected the least and the most'
      )
    if not 0 <= self.latin <= 1:
      raise ValueError(f'latin is {self.latin}, expected a share, 0 to 1')
    if not self.aspect >= 1:
      raise ValueError(
        f'aspect is {self.aspect}, expected the longer side divided by the '
        'shorter one, 1 or more'
      )
    try:
      re.compile(self.without)
    except re.error as error:
      raise ValueError(f'without is {self.without!r}: {error}') from error
    for condition in self.where:
      _check_condition(condition)

  def against_caption(self, caption: str) -> str | None:
    """Returns what is wrong with a caption; None if nothing is."""
    low, high = self.characters
    if len(caption) < low:
      return 'caption too short'
    if len(caption) > high:
      return 'caption too long'
    if self.latin and latin_share(caption) < self.latin:
      return 'caption not Latin'
    if self.without and re.search(self.without, caption):
      return 'caption excluded'
    return None


class FilteredSource:
  """The records of another source that pass some rules, in its order.

  Captions that do not pass are left out, and records with no other. A record
  that cannot be read stays: whoever reads it reports it.

  Attributes:
    source: What is chosen from.
    dropped: Number of records left out, by reason: of a record with several
      captions, what is wrong with the first.
    dropped_captions: Number of captions left out of records that remain.
  """

  def __init__(self, source: CaptionSource, rules: Rules):
    """Looks at every record; at its image only if `rules.aspect` is set.

    Args:
      source: To choose from.
      rules: What to keep.

    Raises:
      ValueError: If no record passes, or one lacks a field of `rules.where`.
    """
    self.source = source
    self._rules = rules
    self.dropped: collections.Counter[str] = collections.Counter()
    self.dropped_captions = 0
    # Not by way of a list, which takes ten times as much memory.
    self._indices = np.fromiter(
      filter(self._keeps, range(len(source))), np.min_scalar_type(len(source))
    )
    if not len(self):
      counts = ', '.join(f'{why}: {n}' for why, n in self.dropped.items())
      raise ValueError(
        f'none of {len(source)} records passes the rules ({counts}); relax them'
      )

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.source[int(self._indices[index])]
    return {**record, 'texts': self._passing(record['texts'])}

  def captions(self, index: int) -> tuple[str, ...]:
    """Returns the captions of a record that pass."""
    return self._passing(self.source.captions(int(self._indices[index])))

  def fields(self, index: int) -> Mapping[str, Any]:
    return self.source.fields(int(self._indices[index]))

  def name(self, index: int) -> str:
    return self.source.name(int(self._indices[index]))

  def _passing(self, captions: Sequence[str]) -> tuple[str, ...]:
    against = self._rules.against_caption
    return tuple(caption for caption in captions if not against(caption))

  def _keeps(self, index: int) -> bool:
    """Returns whether to keep a record; counts it if not."""
    reason = self._against(index)
    if reason is not None:
      self.dropped[reason] += 1
    return reason is None

  def _against(self, index: int) -> str | None:
    """Returns why to leave a record out; None if it is kept."""
    try:
      fields = self.source.fields(index) if self._rules.where else {}
      captions = self.source.captions(index)
    except (OSError, ValueError):
      return None
    for condition in self._rules.where:
      if not self._meets(condition, fields, index):
        return f'not {condition}'
    wrong = [self._rules.against_caption(caption) for caption in captions]
    if all(wrong):
      return wrong[0]
    if self._rules.aspect < float('inf') and self._is_long(index):
      return 'image too long'
    self.dropped_captions += sum(reason is not None for reason in wrong)
    return None

  def _is_long(self, index: int) -> bool:
    """Returns whether an image is longer than the rules allow."""
    try:
      width, height = _size(self.source[index]['image'])
    except Exception:  # Pillow raises almost anything on malformed input.
      return False
    return max(width, height) > self._rules.aspect * min(width, height)

  def _meets(
    self, condition: str, fields: Mapping[str, Any], index: int
  ) -> bool:
    """Returns whether a record meets a condition of `where`."""
    field, negated, operator, value = _CONDITION.fullmatch(condition).groups()
    if field not in fields:
      raise unknown_field(self.source, index, field, fields)
    text = str(fields[field])
    met = text == value if operator == '=' else bool(re.search(value, text))
    return met != bool(negated)


def _check_condition(condition: str) -> None:
  """Raises ValueError if a condition of `where` is malformed."""
  parts = _CONDITION.fullmatch(condition)
  if not parts:
    raise ValueError(
      f"where has {condition!r}, expected 'field=value', 'field!=value', "
      "'field~expression' or 'field!~expression'"
    )
  if parts[3] == '~':
    try:
      re.compile(parts[4])
    except re.error as error:
      raise ValueError(f'where has {condition!r}: {error}') from error


def unknown_field(
  source: CaptionSource, index: int, field: str, known: Mapping[str, Any]
) -> ValueError:
  """Returns the error that a record lacks a field."""
  return ValueError(
    f'{source.name(index)} has no field {field!r}; it has '
    f'{", ".join(known) or "none"}'
  )


def latin_share(text: str) -> float:
  """Returns the share of characters, spaces apart, that are Latin letters."""
  characters = ''.join(text.split())
  if text.isascii():  # As most are, and much faster.
    latin = len(_NO_LETTERS.sub('', characters))
  else:
    latin = sum(map(_is_latin, characters))
  return latin / max(1, len(characters))


def _is_latin(character: str) -> bool:
  if character.isascii():
    return character.isalpha()
  return unicodedata.name(character, '').startswith('LATIN')


def _size(image: np.ndarray | bytes) -> tuple[int, int]:
  """Returns width and height, of a file without decoding it."""
  if isinstance(image, np.ndarray):
    return image.shape[1], image.shape[0]
  with Image.open(io.BytesIO(image)) as opened:
    return opened.size
