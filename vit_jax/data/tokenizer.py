"""CLIP's byte-pair tokenizer: reading, training and writing its merges.

A text is cleaned, lower-cased and cut into words; each word starts as the
bytes of its UTF-8 form, the last one marked as the end of a word, and the
pairs in the list of merges are joined, earlier merges first (Radford et al.,
arXiv:2103.00020, section 2.4; Sennrich et al., arXiv:1508.07909). Token ids
are those of OpenAI's released models if the list of merges is theirs, but a
text never gives a special token, whatever it spells.
"""

import collections
import functools
import gzip
import html
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from vit_jax.data import merge_dropout

Merges = tuple[tuple[str, str], ...]

START, END = '<|startoftext|>', '<|endoftext|>'
# Ends the last symbol of each word.
_WORD_END = '</w>'
# Contractions, runs of letters, single digits, runs of anything else.
_WORD = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SPACES = re.compile(r'\s+')
# The released file holds more merges than the released models use.
_MAX_MERGES = 48_894
_HEADER = '#version: 0.2'


def _byte_symbols() -> dict[int, str]:
  """Returns a visible character for each byte, in the order of token ids."""
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in visible]
  # Spaces, controls and the like borrow characters that no byte stands for.
  return {byte: chr(byte) for byte in visible} | {
    byte: chr(256 + number) for number, byte in enumerate(others)
  }


_SYMBOLS = _byte_symbols()
_BYTES = {symbol: byte for byte, symbol in _SYMBOLS.items()}
# What merges start from, which has the first 512 ids.
_ALPHABET = (
  *_SYMBOLS.values(),
  *(symbol + _WORD_END for symbol in _SYMBOLS.values()),
)
# The smallest vocabulary: the alphabet and the two special tokens.
_MIN_SIZE = len(_ALPHABET) + 2


class Tokenizer:
  """Turns texts into token ids and back; picklable.

  Attributes:
    merges: Pairs of symbols to join, the most important first.
    context_length: Tokens of a text, with its start, end and padding.
    size: Number of token ids.
    start: Id of the token before each text.
    end: Id of the token after each text, the highest of all.
  """

  def __init__(self, merges: Merges, context_length: int = 77):
    """Makes a tokenizer.

    Args:
      merges: See `read_merges` and `train_merges`.
      context_length: Tokens of a text, with its start, end and padding.

    Raises:
      ValueError: If merges do not build on each other, or `context_length` is
        too short.
    """
    if context_length < 3:
      raise ValueError(
        f'context_length is {context_length}, expected 3 or more: a text is at '
        'least one token between start and end'
      )
    self.merges = tuple(merges)
    self.context_length = context_length
    _check_merges(self.merges)
    joined = [first + second for first, second in self.merges]
    self._symbols = (*_ALPHABET, *joined, START, END)
    self.size = len(self._symbols)
    self.start, self.end = self.size - 2, self.size - 1
    # Where two merges give the same symbol, the later id counts.
    ids = {symbol: number for number, symbol in enumerate(self._symbols)}
    self._words = _word_tokenizer(ids, self.merges)

  def encode(
    self,
    text: str,
    bpe_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
  ) -> list[int]:
    """Returns the token ids of a text, without start and end.

    Args:
      text: What to encode.
      bpe_dropout: Chance of each merge to be left out; see `merge_dropout`.
      rng: Source of randomness, where `bpe_dropout` is not 0.
    """
    if not bpe_dropout:
      return self._words.encode(clean(text), add_special_tokens=False).ids
    ids, ranks = self._ids_and_ranks
    words = self._words.pre_tokenizer.pre_tokenize_str(clean(text))
    return [
      ids[symbol]
      for word, _ in words
      for symbol in merge_dropout.merged(
        [*word[:-1], word[-1] + _WORD_END], ranks, bpe_dropout, rng
      )
    ]

  @functools.cached_property
  def _ids_and_ranks(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Id of each symbol, and place of each merge in their list."""
    ids = {symbol: number for number, symbol in enumerate(self._symbols)}
    return ids, {pair: rank for rank, pair in enumerate(self.merges)}

  def __call__(
    self,
    texts: Sequence[str],
    bpe_dropout: float = 0.0,
    rng: np.random.Generator | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts to one length.

    Args:
      texts: What to encode.
      bpe_dropout: See `encode`, as for `rng`.
      rng: Source of randomness.

    Returns:
      Token ids, int32 [texts, context_length]: start, text, end, zeros. Of a
      text that is too long the end is cut off, not the end token. And whether
      each text was cut, bool [texts].
    """
    if isinstance(texts, str):
      raise TypeError(f'expected a list of texts, got the text {texts!r}')
    tokens = np.zeros((len(texts), self.context_length), np.int32)
    truncated = np.zeros(len(texts), bool)
    for row, text in enumerate(texts):
      ids = self.encode(text, bpe_dropout, rng)
      truncated[row] = len(ids) > self.context_length - 2
      ids = [self.start, *ids[: self.context_length - 2], self.end]
      tokens[row, : len(ids)] = ids
    return tokens, truncated

  def decode(self, tokens: Iterable[int]) -> str:
    """Returns the text of token ids, cleaned as it was encoded.

    Args:
      tokens: Ids up to `size`; what follows the first end token is ignored.

    Returns:
      Words with single spaces between; where bytes were cut off or never were
      UTF-8, the replacement character U+FFFD.
    """
    tokens = itertools.takewhile(lambda token: token != self.end, tokens)
    content = b''
    for token in tokens:
      if token == self.start:
        continue
      if not 0 <= token < self.size:
        raise ValueError(f'token {token} is not from 0 to {self.size - 1}')
      symbol = self._symbols[token]
      word = symbol.removesuffix(_WORD_END)
      content += bytes(_BYTES[character] for character in word)
      if symbol != word:
        content += b' '
    return content.decode('utf-8', errors='replace').strip()

  def __reduce__(self):
    return Tokenizer, (self.merges, self.context_length)


def clean(text: str) -> str:
  """Repairs wrong encodings and HTML entities; one space between words."""
  # Most captions have nothing to repair, which is seen in a tenth of the time.
  if not (text.isascii() and text.isprintable() and '&' not in text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return _SPACES.sub(' ', text).strip().lower()


def packaged(name: str) -> Any:
  """Returns the file of merges that comes with the package; None if none does.

  Args:
    name: 'openai' for those of CLIP's released models.
  """
  if name != 'openai':
    return None
  return resources.files('vit_jax.data') / 'merges' / 'openai.txt.gz'


def read_merges(path: str | pathlib.Path) -> Merges:
  """Reads a list of merges.

  Args:
    path: Text file, or one packed by gzip: a line to skip, then a merge a
      line. Those after the 48,894th are not used, as in the released models.

  Returns:
    The merges.

  Raises:
    ValueError: If the file is malformed; says in which line.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    if content.startswith(b'\x1f\x8b'):
      content = gzip.decompress(content)
    lines = content.decode('utf-8').split('\n')
  except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
    raise ValueError(f'{path} is damaged ({error}); get it again') from error
  if not lines[-1]:
    lines.pop()
  pairs = [tuple(line.split(' ')) for line in lines[1 : 1 + _MAX_MERGES]]
  for number, pair in enumerate(pairs, 2):
    if len(pair) != 2 or not all(pair):
      raise ValueError(
        f'line {number} of {path} is {lines[number - 1][:80]!r}, expected two '
        'symbols and one space between; is this a list of merges?'
      )
  try:
    _check_merges(pairs)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  return tuple(pairs)


def write_merges(path: str | pathlib.Path, merges: Merges) -> None:
  """Writes a list of merges as `read_merges` reads it, the same every time.

  Args:
    path: File to write; packed by gzip if its name ends in '.gz'.
    merges: What to write.
  """
  # No new line at the end: OpenAI's reader would take it for a merge.
  lines = [_HEADER, *(' '.join(pair) for pair in merges)]
  content = '\n'.join(lines).encode()
  path = pathlib.Path(path)
  if path.suffix == '.gz':
    content = gzip.compress(content, mtime=0)
  path.write_bytes(content)


def train_merges(texts: Iterable[str], size: int) -> Merges:
  """Learns the merges that shorten texts most.

  Args:
    texts: Such as are to be encoded.
    size: Token ids that a tokenizer with these merges has, 515 or more.

  Returns:
    Merges; fewer than asked for if every word is one token before.

  Raises:
    ValueError: If `size` is too small, or the texts have nothing to merge.
  """
  if size <= _MIN_SIZE:
    raise ValueError(
      f'size is {size}, expected {_MIN_SIZE + 1} or more: '
      f'{len(_ALPHABET)} bytes, 2 special tokens and the merges'
    )
  learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
  learner.pre_tokenizer = _splitter()
  trainer = trainers.BpeTrainer(
    vocab_size=size - 2,
    min_frequency=1,
    # Ids of the alphabet decide between equally frequent pairs, so they are
    # given; left to the trainer, they differ from run to run.
    special_tokens=list(_ALPHABET),
    end_of_word_suffix=_WORD_END,
    show_progress=False,
  )
  learner.train_from_iterator(map(clean, texts), trainer)
  merges = json.loads(learner.to_str())['model']['merges']
  if not merges:
    raise ValueError(
      'there is nothing to merge: no word of the texts has two letters or '
      'more, so that there are no pairs of letters; give longer texts'
    )
  return tuple((first, second) for first, second in merges)[: size - _MIN_SIZE]


def _check_merges(merges: Sequence[Sequence[str]]) -> None:
  """Raises ValueError if a merge joins what no earlier merge has made."""
  known = set(_ALPHABET)
  for number, pair in enumerate(merges, 1):
    for symbol in pair:
      if symbol not in known:
        raise ValueError(
          f'merge {number} joins {" ".join(pair)!r}, but no merge before it '
          f'makes {symbol!r}; the list is damaged or of another kind'
        )
    known.add(''.join(pair))
  repeated = collections.Counter(map(tuple, merges)).most_common(1)
  if repeated and repeated[0][1] > 1:
    raise ValueError(f'the merge {" ".join(repeated[0][0])!r} comes twice')


def _splitter() -> pre_tokenizers.PreTokenizer:
  """Returns what cuts a clean text into words, spelt in byte symbols."""
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(
        tokenizers.Regex(_WORD), behavior='removed', invert=True
      ),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _word_tokenizer(
  ids: dict[str, int], merges: Merges
) -> tokenizers.Tokenizer:
  """Returns what turns a clean text into ids."""
  model = models.BPE(
    vocab=ids, merges=list(merges), end_of_word_suffix=_WORD_END
  )
  result = tokenizers.Tokenizer(model)
  result.pre_tokenizer = _splitter()
  return result
