"""Orders of records that keep those of the same identity out of one batch."""

from collections.abc import Sequence

import grain
import numpy as np

from vit_jax.data import caption_source, pairs

# Added to the number of a record that has no identity: beyond all of these.
_NO_IDENTITY = 2**32


class UniqueOrder:
  """Which record is at each position of a run; picklable.

  In an epoch each identity comes once, by any of its records, except for the
  few that do not fill a last batch. So records with a rare identity come more
  often than others. A pure function of the arguments.
  """

  def __init__(self, identities: Sequence[int], batch_size: int, seed: int):
    """Groups the records.

    Args:
      identities: Of each record.
      batch_size: Examples of one step in all processes together.
      seed: Of the order.

    Raises:
      ValueError: If there are fewer identities than a batch has examples.
    """
    _, numbers, counts = np.unique(
      identities, return_inverse=True, return_counts=True
    )
    if len(counts) < batch_size:
      raise ValueError(
        f'a batch of {batch_size} cannot be of different captions: '
        f'{len(numbers)} records have {len(counts)}'
      )
    # Records of the first identity, of the second, ...
    self._records = np.argsort(numbers, kind='stable')
    self._starts = np.cumsum(counts) - counts
    self._counts = counts
    self._batch_size = batch_size
    self._seed = seed
    self._shuffle()

  def _shuffle(self) -> None:
    groups = grain.MapDataset.range(len(self._counts)).seed(self._seed)
    self._groups = groups.shuffle().repeat()

  def __getstate__(self):
    return {k: v for k, v in vars(self).items() if k != '_groups'}

  def __setstate__(self, state):
    vars(self).update(state)
    self._shuffle()

  def __getitem__(self, position: int) -> int:
    """Returns the record at a position, step * batch_size + example."""
    count = len(self._counts)
    epoch, place = divmod(position, count - count % self._batch_size)
    group = int(self._groups[epoch * count + place])
    generator = np.random.Philox(key=[self._seed, position])
    chosen = int(generator.random_raw()) % int(self._counts[group])
    return int(self._records[self._starts[group] + chosen])


def identities(source: caption_source.CaptionSource) -> list[int]:
  """Returns the identity of each record; see `pairs.identity`.

  A record whose captions cannot be read has one of its own.
  """
  found = []
  for index in range(len(source)):
    captions = caption_source.readable_captions(source, index)
    found.append(
      int(pairs.identity(captions[0])) if captions else _NO_IDENTITY + index
    )
  return found
