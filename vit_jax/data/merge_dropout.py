"""Byte-pair encoding that leaves out some merges, so that words vary.

Provilkov et al., arXiv:1910.13267. The library that encodes otherwise can do
it too, but from random numbers that cannot be told; these follow a generator.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def merged(
  symbols: Sequence[str],
  ranks: Mapping[tuple[str, str], int],
  dropout: float,
  rng: np.random.Generator,
) -> list[str]:
  """Joins the symbols of a word, earlier merges first.

  Args:
    symbols: What the word starts as.
    ranks: Place of each merge in the list of them.
    dropout: Chance of a merge to be left out, each time that the next one is
      chosen; with 1 nothing is joined.
    rng: Source of randomness.

  Returns:
    The symbols that are left.
  """
  symbols = list(symbols)
  while True:
    places = [
      (ranks[pair], place)
      for place, pair in enumerate(zip(symbols, symbols[1:]))
      if pair in ranks
    ]
    if not places:
      return symbols
    kept = rng.random(len(places)) >= dropout
    places = [found for found, keep in zip(places, kept) if keep]
    if not places:
      return symbols
    _, place = min(places)
    symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
