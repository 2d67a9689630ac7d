"""The texts that pictures of a text tower are made of."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from vit_jax.config import ConfigError
from vit_jax.data import tokenizer
from vit_jax.training import matching, records, trained

# Records that are looked at for each text that is wanted, at most: captions
# can be alike.
_PATIENCE = 10


@dataclasses.dataclass(frozen=True)
class Texts:
  """Texts, for a model and for a person.

  Attributes:
    names: the texts.
    inputs: their tokens, int32 [texts, length].
    tokens: the same in letters, without padding, for each text.
    ends: which token of each is its last, int [texts]; the first is the start.
    source: where they are from, in words.
  """

  names: tuple[str, ...]
  inputs: np.ndarray
  tokens: tuple[tuple[str, ...], ...]
  ends: np.ndarray
  source: str

  def first(self, number: int) -> 'Texts':
    """Returns the first of them."""
    return Texts(
      self.names[:number],
      self.inputs[:number],
      self.tokens[:number],
      self.ends[:number],
      self.source,
    )


def read(
  model: trained.Trained, file: pathlib.Path | None, number: int
) -> Texts:
  """Reads texts, each once, as tokens of the model.

  Args:
    model: whose tokenizer, and without a file whose test data, to use; of that
      captions are chosen at random, always the same.
    file: of texts, one a line, of which the first are taken.
    number: of texts, at most.

  Raises:
    ConfigError: there is none, or the model has no tokenizer.
  """
  matching.check_tokenizer(model)
  words = model.task.tokenizer
  if file is None:
    source, texts = 'the test data', _captions(model, number)
  else:
    source, texts = str(file), _lines(file)
  names = tuple(itertools.islice(_distinct(texts), number))
  if not names:
    raise ConfigError(f'There is no text in {source}.')
  inputs, _ = words(names)
  tokens = tuple(in_letters(words, row) for row in inputs)
  ends = np.array([len(text) - 1 for text in tokens])
  return Texts(names, inputs, tokens, ends, source)


def in_letters(words: tokenizer.Tokenizer, row: np.ndarray) -> tuple[str, ...]:
  """Returns the tokens of a text in letters, without padding."""
  ids = itertools.takewhile(lambda token: token != words.end, row[1:])
  return ('<start>', *(words.decode([token]) for token in ids), '<end>')


def _distinct(texts: Iterable[str]) -> Iterator[str]:
  return (text for text in dict.fromkeys(texts) if text.strip())


def _lines(file: pathlib.Path) -> list[str]:
  try:
    return file.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'--texts={file} cannot be read: {error}') from error


def _captions(model: trained.Trained, number: int) -> list[str]:
  """Returns first captions of test data, as evaluation takes them."""
  config: Any = model.config
  if not config.data.test.source:
    raise ConfigError(
      'A released checkpoint comes without data: name a file of texts, one a '
      'line, --texts=FILE.'
    )
  source = records.open_split(config, 'test')
  template = (*config.data.text.templates, '{}')[0]
  order = np.random.default_rng(0).permutation(len(source))
  chosen = order[: _PATIENCE * number]
  return [template.replace('{}', source.captions(int(i))[0]) for i in chosen]
