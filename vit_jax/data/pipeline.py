"""Batches of examples: a pure function of (seed, step), however it is read.

Example g of a run, g = step * batch_size + position in the global batch, is
record `order[g]` under the random numbers of (seed, g). So batches do not
depend on the number of processes, workers or threads, and a run is resumed at
step k by asking for step k; nothing has to be saved.
"""

import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from vit_jax.data import batching, sources, unique_order
from vit_jax.data import preprocess as preprocess_lib

Batch = dict[str, np.ndarray]
# More batches than any run takes: Grain wants an end.
_ENDLESS = 2**40
# Batches made while an earlier one is in use, in each process.
_BATCHES_AHEAD = 2
_NAMES_SHOWN = 20


class BrokenDataError(Exception):
  """More records cannot be read than the run tolerates."""


class Batches(Iterator[Batch]):
  """Iterator of batches, which has to be closed.

  Attributes:
    broken: Error message of each broken record met so far, by its name.
  """

  def __init__(
    self,
    source: sources.Source,
    preprocess: preprocess_lib.Preprocess,
    *,
    batch_size: int,
    seed: int | None,
    order: unique_order.UniqueOrder | None = None,
    steps: range,
    process_index: int,
    process_count: int,
    workers: int,
    threads: int | None,
    max_broken: float,
  ):
    """Starts reading; see `train_batches` and `eval_batches`."""
    _check_division(batch_size, process_index, process_count)
    if not 0 <= max_broken < 1:
      raise ValueError(
        f'max_broken is a share of the records, from 0 to below 1; got '
        f'{max_broken}'
      )
    if workers < 0 or (threads is not None and threads < 1):
      raise ValueError(
        f'workers must be 0 or more, threads 1 or more; got workers={workers}, '
        f'threads={threads}'
      )
    if not len(source):
      raise ValueError('the source holds no record')
    self.broken: dict[str, str] = {}
    self._source = source
    self._tolerated = max_broken * len(source)
    index, template = _first_readable(source, preprocess, self._tolerated)
    self._builder = batching.Builder(
      source,
      preprocess,
      template,
      source.name(index),
      batch_size=batch_size,
      process_index=process_index,
      process_count=process_count,
      threads=threads or _default_threads(source[index], workers),
      seed=seed,
      order=order,
      tolerated=self._tolerated,
    )
    read = grain.ReadOptions(
      num_threads=min(_BATCHES_AHEAD, self._builder.threads),
      prefetch_buffer_size=_BATCHES_AHEAD,
    )
    dataset = grain.MapDataset.range(steps.start, steps.stop)
    dataset = dataset.map(self._builder).to_iter_dataset(read)
    if workers:
      if not flags.FLAGS.is_parsed():
        # Grain asks its flags when it starts processes, in notebooks too.
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers))
      # Batches come in shared memory, which outlives the process if somebody
      # still holds one at exit. They are copied out, in the background.
      dataset = grain.experimental.ThreadPrefetchIterDataset(
        dataset.map(_copy), prefetch_buffer_size=1
      )
    self._iterator = iter(dataset)
    # The first batches are made while the caller compiles its step.
    self._iterator.start_prefetch()

  def __next__(self) -> Batch:
    if self._iterator is None:
      raise StopIteration
    try:
      batch = next(self._iterator)
      self._note(batch.pop(batching.BROKEN))
    except BaseException:
      self.close()
      raise
    return batch

  def close(self) -> None:
    """Ends threads and worker processes; may be called more than once."""
    if self._iterator is not None:
      self._builder.close()
      self._iterator.close()
      self._iterator = None

  def _note(self, broken: dict[int, str]) -> None:
    """Keeps account of broken records and stops the run if they are many."""
    for index, message in sorted(broken.items()):
      self.broken[self._source.name(index)] = message
    if len(self.broken) > self._tolerated:
      raise _broken_data_error(self.broken, len(self._source))


def train_batches(
  source: sources.Source,
  preprocess: preprocess_lib.Preprocess,
  *,
  batch_size: int,
  seed: int,
  order: unique_order.UniqueOrder | None = None,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int | None = None,
  max_broken: float = 0.0,
) -> Batches:
  """Returns endless training batches.

  Each epoch is a new shuffle of the whole source, and batches run across the
  ends of epochs. A broken record is replaced by the next readable one.

  Args:
    source: Where to read.
    preprocess: What to do with each record.
    batch_size: Examples of a step in all processes together.
    seed: Of order and augmentation, 0 to 2**32 - 1.
    order: Which record is at each position; by default each epoch is a new
      shuffle of all.
    start_step: Step of the first batch; that is all a resumed run needs.
    process_index: Which contiguous part of each batch to return.
    process_count: Number of such parts.
    workers: Worker processes, which make and hold several whole batches each;
      0 reads in threads of this process.
    threads: Threads in each worker, or here; None chooses: the cores
      shared out for encoded images, one for images in memory.
    max_broken: Share of the records that may be unreadable.

  Returns:
    Iterator of {'image': [batch_size / process_count, height, width,
    channels], 'label': int32 [batch_size / process_count]}. It raises
    BrokenDataError when more records than `max_broken` cannot be read, and
    ValueError if examples have different shapes. Close it.

  Raises:
    ValueError: If an argument is out of range.
    BrokenDataError: If already the first records are broken, and too many.
  """
  if not 0 <= seed < 2**32:
    raise ValueError(f'seed is from 0 to 2**32 - 1; got {seed}')
  if start_step < 0:
    raise ValueError(f'start_step is 0 or more; got {start_step}')
  return Batches(
    source,
    preprocess,
    batch_size=batch_size,
    seed=seed,
    order=order,
    steps=range(start_step, _ENDLESS),
    process_index=process_index,
    process_count=process_count,
    workers=workers,
    threads=threads,
    max_broken=max_broken,
  )


def eval_batches(
  source: sources.Source,
  preprocess: preprocess_lib.Preprocess,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  threads: int | None = None,
  max_broken: float = 0.0,
) -> Batches:
  """Returns batches that hold each record exactly once, in order.

  Every process gets ceil(records / batch_size) batches. Where there is no
  example, beyond the end or because the record is broken, arrays are zero and
  so is the mask.

  Args:
    source: Where to read.
    preprocess: What to do with each record; must not be random.
    batch_size: Examples of a step in all processes together.
    process_index: Which contiguous part of each batch to return.
    process_count: Number of such parts.
    workers: Worker processes, which make and hold several whole batches each;
      0 reads in threads of this process.
    threads: Threads in each worker, or here; None chooses: the cores
      shared out for encoded images, one for images in memory.
    max_broken: Share of the records that may be unreadable.

  Returns:
    Iterator like that of `train_batches`, with 'mask' float32 [batch_size /
    process_count] besides.

  Raises:
    ValueError: If an argument is out of range, or a step is random.
    BrokenDataError: If already the first records are broken, and too many.
  """
  if not preprocess.deterministic:
    raise ValueError(
      f'evaluation must not be random, but {preprocess.text!r} is; use '
      'resize_small and central_crop'
    )
  if batch_size < 1:
    raise ValueError(f'batch_size is 1 or more; got {batch_size}')
  return Batches(
    source,
    preprocess,
    batch_size=batch_size,
    seed=None,
    steps=range(-(-len(source) // batch_size)),
    process_index=process_index,
    process_count=process_count,
    workers=workers,
    threads=threads,
    max_broken=max_broken,
  )


def example_shape(
  source: sources.Source, preprocess: preprocess_lib.Preprocess
) -> tuple[int, ...]:
  """Returns (height, width, channels) of the examples, reading one record.

  Of codes, `preprocess.image_shape` says what they stand for.
  """
  if shape := getattr(preprocess, 'image_shape', None):
    return shape
  _, example = _first_readable(source, preprocess, len(source))
  return example['image'].shape


def _first_readable(
  source: sources.Source,
  preprocess: preprocess_lib.Preprocess,
  tolerated: float,
) -> tuple[int, batching.Example]:
  """Returns the first record that can be read, and its example."""
  randomness = batching.Randomness(seed=0)
  broken = {}
  for index in range(len(source)):
    try:
      rng = randomness.of_example(index)
      return index, batching.read_example(source, preprocess, index, rng)
    except batching.BrokenRecordError as error:
      broken[source.name(index)] = str(error)
    if len(broken) > tolerated:
      break
  raise _broken_data_error(broken, len(source))


def _copy(batch: dict[str, Any]) -> dict[str, Any]:
  """Returns a batch with arrays of its own."""
  return {
    key: np.array(value) if isinstance(value, np.ndarray) else value
    for key, value in batch.items()
  }


def _default_threads(record: dict[str, Any], workers: int) -> int:
  """Returns how many threads help each process."""
  if isinstance(record.get('image', record.get('codes')), np.ndarray):
    # Small steps in Python: threads would only wait for each other.
    return 1
  return max(1, (os.cpu_count() or 1) // max(1, workers))


def _broken_data_error(broken: dict[str, str], total: int) -> BrokenDataError:
  shown = list(broken.items())[:_NAMES_SHOWN]
  more = len(broken) - len(shown)
  return BrokenDataError(
    f'{len(broken)} of {total} records cannot be read; repair or remove them, '
    'or raise data.max_broken:\n  '
    + '\n  '.join(f'{name}: {message}' for name, message in shown)
    + (f'\n  and {more} more' if more else '')
  )


def _check_division(
  batch_size: int, process_index: int, process_count: int
) -> None:
  if batch_size < 1 or process_count < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size {batch_size} cannot be shared out among {process_count} '
      'process(es); make it a multiple'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f'process_index {process_index} is not below process_count '
      f'{process_count}'
    )
