"""What a configuration says about texts, `config.data.text`, opened."""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

from vit_jax.config import ConfigError
from vit_jax.data import (
  caption_filter,
  caption_source,
  captions,
  code_shards,
  tokenizer,
  unique_order,
)
from vit_jax.training import schema

# Records whose captions a tokenizer is made from, where none is given.
_MEASURED = 20_000
# More records than this are never looked at one by one: those of sources that
# draw them as they are needed. The largest collections of pairs have fewer; by
# the rules, 250 million take an hour of a core, and a gigabyte.
COUNTABLE = 10**9
# Rules that need no image.
_OF_CAPTIONS = ('characters', 'latin', 'without')


def open_source(section: Any, where: str) -> captions.CaptionSource:
  """Opens a source of captions; those that the rules refuse are left out.

  Args:
    section: `config.data.train` or `config.data.test`, and `config.data.text`.
    where: it stands, for messages.

  Raises:
    ConfigError: it is not there, or malformed, or no record passes.
  """
  try:
    return captions.open_source(section.source, section.split)
  except (ValueError, OSError, ImportError, AssertionError) as error:
    raise ConfigError(f'{where}: {error}') from error


def filtered(
  source: captions.CaptionSource, text: Any, images: bool = True
) -> Any:
  """Leaves out the records that `config.data.text` refuses.

  Args:
    source: to choose from.
    text: `config.data.text`.
    images: whether records have images, or else codes of those that passed.

  Returns:
    A source of the others; the same one if all are known to pass.

  Raises:
    ConfigError: a rule is malformed, no record passes, or there is no end.
  """
  keys = (*_OF_CAPTIONS, 'aspect') if images else _OF_CAPTIONS
  try:
    rules = caption_filter.Rules(**{key: text[key] for key in keys})
  except ValueError as error:
    raise ConfigError(f'config.data.text: {error}.') from error
  if rules == caption_filter.Rules() or _passed(source, caption_rules(text)):
    return source
  _check_countable(source, 'a rule')
  try:
    return caption_filter.FilteredSource(source, rules)
  except ValueError as error:
    raise ConfigError(f'config.data.text: {error}.') from error


def caption_rules(text: Any) -> str:
  """Returns what `config.data.text` asks of captions; '' if nothing."""
  anything = caption_filter.Rules()
  return ', '.join(
    f'{key}={text[key]!r}'
    for key in _OF_CAPTIONS
    if text[key] != getattr(anything, key)
  )


def _passed(source: captions.CaptionSource, asked: str) -> bool:
  """Returns whether all captions were chosen by what is asked of them.

  Codes are written of such alone, and know by what. To look at them again
  would take an hour of 250 million, in each process and at each start.
  """
  return all(
    isinstance(stage, code_shards.CodeShards) and stage.about.captions == asked
    for stage in _stages(source)
    if not _inner(stage)
  )


def left_out(source: Any) -> str:
  """Returns how many records were left out and why, in words; '' if none.

  Counted is all that was looked through, at every stage: of a part such as
  'all[:3]' what is missing in the whole.
  """
  dropped: collections.Counter[str] = collections.Counter()
  for stage in {id(stage): stage for stage in _stages(source)}.values():
    dropped.update(getattr(stage, 'dropped', {}))
    dropped['captions of records that stay'] += getattr(
      stage, 'dropped_captions', 0
    )
  return ', '.join(f'{n:,} {reason}' for reason, n in dropped.items() if n)


def _stages(source: Any) -> Iterator[Any]:
  """Yields a source and all that it takes its records from."""
  yield source
  for one in _inner(source):
    yield from _stages(one)


def _inner(source: Any) -> list[Any]:
  """Returns what a source takes its records from; [] if it reads them."""
  if isinstance(source, captions.JoinedCaptions):
    return [part for part, _ in source.parts]
  if isinstance(source, caption_filter.FilteredSource):
    return [source.source]
  return []


def order(
  source: captions.CaptionSource, config: Any
) -> unique_order.UniqueOrder | None:
  """Returns the order of `config.data.text.unique`; None where it is off."""
  if not config.data.text.unique:
    return None
  _check_countable(source, 'unique')
  try:
    return unique_order.UniqueOrder(
      unique_order.identities(source), config.batch_size, config.seed
    )
  except ValueError as error:
    raise ConfigError(f'config.data.text.unique: {error}.') from error


def _check_countable(source: captions.CaptionSource, why: str) -> None:
  if len(source) > COUNTABLE:
    raise ConfigError(
      f'config.data.text: {why} would need a look at {len(source):,} records, '
      f'which has no end: expected {COUNTABLE:,} or fewer. Leave it out, or '
      "name a part of them, such as config.data.train.split='train[:100000]'."
    )


def open_tokenizer(
  config: Any, source: captions.CaptionSource | None
) -> tokenizer.Tokenizer:
  """Reads the tokenizer, or makes one from the captions of training.

  Args:
    config: complete.
    source: of captions; None where the configuration names the tokenizer.

  Raises:
    ConfigError: there is none, or it has not the vocabulary of the model.
  """
  size, length = schema.text_sizes(config.model)
  path = config.data.text.tokenizer
  try:
    if path:
      merges = tokenizer.read_merges(tokenizer.packaged(path) or path)
    else:
      texts = itertools.chain.from_iterable(
        caption_source.readable_captions(source, index)
        for index in range(min(_MEASURED, len(source)))
      )
      merges = tokenizer.train_merges(texts, size)
    result = tokenizer.Tokenizer(merges, length)
  except (ValueError, OSError) as error:
    raise ConfigError(f'config.data.text.tokenizer: {error}') from error
  if result.size != size:
    made = f'{path} has' if path else 'The captions of training give'
    raise ConfigError(
      f'{made} {result.size} tokens, but the vocabulary of config.model is '
      f'{size}: make it {result.size}.'
    )
  return result
