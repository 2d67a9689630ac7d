"""Trains a tokenizer on captions: `python -m vit_jax.train_tokenizer`.

  python -m vit_jax.train_tokenizer captions:DIR --size=8192 --output=FILE.gz

Sources of captions are named as in a configuration; a .txt file has one
caption a line. The list of merges that it writes has the format of CLIP's.
"""

import argparse
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.data import captions, tokenizer

# Captions that lengths are measured on.
_MEASURED = 10_000
# More records would take a day.
_MAX_RECORDS = 10**9


def main(arguments: Sequence[str], console: Console) -> None:
  """Writes a list of merges and prints what it does to the captions."""
  options = argparse.ArgumentParser(
    prog='python -m vit_jax.train_tokenizer',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  options.add_argument(
    'sources', nargs='+', help="'captions:PATH', 'shards:PATH' or FILE.txt"
  )
  options.add_argument('--split', default='train', help='of the sources')
  options.add_argument(
    '--size', type=int, default=8192, help='of the vocabulary'
  )
  options.add_argument(
    '--context', type=int, default=77, help='tokens of a text, for the figures'
  )
  options.add_argument(
    '--output', required=True, type=pathlib.Path, help='file to write'
  )
  known = options.parse_args(arguments)
  texts = itertools.chain.from_iterable(
    _captions(source, known.split) for source in known.sources
  )
  try:
    measured = list(itertools.islice(texts, _MEASURED))
    merges = tokenizer.train_merges(
      itertools.chain(measured, texts), known.size
    )
    trained = tokenizer.Tokenizer(merges, known.context)
    tokenizer.write_merges(known.output, merges)
  except (OSError, ValueError) as error:
    raise ConfigError(str(error)) from error
  _report(trained, measured, known.output, console)


def _captions(source: str, split: str) -> Iterator[str]:
  """Yields every caption of a source, or line of a file."""
  if source.endswith('.txt') and ':' not in source:
    with open(source, encoding='utf-8') as file:
      yield from file
    return
  opened = captions.open_source(source, split)
  if len(opened) > _MAX_RECORDS:
    raise ValueError(
      f'{source!r} has {len(opened):,} records, which has no end: name a part, '
      f"such as --split='{split}[:20000]'"
    )
  for index in range(len(opened)):
    yield from opened.captions(index)


def _report(
  trained: tokenizer.Tokenizer,
  texts: Sequence[str],
  path: pathlib.Path,
  console: Console,
) -> None:
  """Prints how long texts are for a tokenizer."""
  lengths = np.array([len(trained.encode(text)) for text in texts])
  room = trained.context_length - 2
  say = functools.partial(console.print, highlight=False, markup=False)
  say(
    f'{path}: {trained.size:,} token ids, of which {len(trained.merges):,} '
    'merges.'
  )
  say(
    f'Tokens of a caption, of {len(texts):,}: {lengths.mean():.1f} on '
    f'average, at most {lengths.max()}. {np.mean(lengths > room):.2%} do not '
    f'fit a context of {trained.context_length}.'
  )


if __name__ == '__main__':
  command_line.run(main)
