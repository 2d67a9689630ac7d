"""How fast a configuration runs here: its step, its inference, its data.

Each measurement is of the very functions that training uses.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import pipeline
from vit_jax.training import flops as flops_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import state as state_lib
from vit_jax.training.run import Run

# Batches that each reader of the pipeline may have made before it is asked:
# two in its buffer, one being made, one in the queue and one on its way.
_HELD = 5


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of calls that follow each other.

  Attributes:
    first: of the first call, compilation included.
    others: of each of the others that are timed.
  """

  first: float
  others: tuple[float, ...]

  @property
  def p50(self) -> float:
    """Median of the others."""
    return float(np.median(self.others))

  @property
  def p95(self) -> float:
    """What 95 % of the others stay under."""
    return float(np.quantile(self.others, 0.95))


def _seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def _time(call: Callable[[], Any], repeats: int) -> Timing:
  """Times `call`, which has to wait for its own result."""
  first = _seconds(call)
  return Timing(first, tuple(_seconds(call) for _ in range(repeats)))


def _random_batch(run: Run, size: int) -> dict[str, jax.Array]:
  """Returns a batch of noise on the devices."""
  rng = np.random.default_rng(0)
  batch = {}
  for name, spec in run.task.batch_spec(size).items():
    if jnp.issubdtype(spec.dtype, jnp.integer):
      batch[name] = np.zeros(spec.shape, spec.dtype)
    else:
      batch[name] = rng.normal(size=spec.shape).astype(spec.dtype)
  return mesh_lib.to_mesh(batch, run.mesh)


def _params(run: Run) -> Any:
  """Allocates parameters, and nothing else of a state, on the devices."""
  sharding = jax.tree.map(lambda leaf: leaf.sharding, run.state.params)

  def init():
    return run.task.init(state_lib.random_key(run.config.seed))['params']

  return jax.block_until_ready(jax.jit(init, out_shardings=sharding)())


def step(run: Run, repeats: int) -> dict[str, float]:
  """Measures training steps on a batch that is already on the devices."""
  start = time.perf_counter()
  batch = _random_batch(run, run.config.batch_size)
  state = jax.block_until_ready(run.init())
  initialised = time.perf_counter() - start

  def call():
    nonlocal state
    state, metrics = run.train_step(state, batch)
    jax.block_until_ready((state, metrics))

  timing = _time(call, repeats)
  work = flops_lib.training_flops(run.task)
  result = _speed(run, timing, run.config.batch_size, work)
  return {**result, 'initialisation, s': initialised}


def inference(run: Run, repeats: int) -> dict[str, float]:
  """Measures the model's predictions, at the batch size of evaluation."""
  size = run.config.eval.batch_size or run.config.batch_size
  image = _random_batch(run, size)['image']
  variables = {'params': _params(run)}
  predict = jax.jit(run.task.predict)
  timing = _time(
    lambda: jax.block_until_ready(predict(variables, image)), repeats
  )
  one = run.task.batch_spec(1)['image']
  work = flops_lib.count_flops(
    run.task.predict, {'params': run.state.params}, one
  )
  return _speed(run, timing, size, work)


def _speed(run: Run, timing: Timing, size: int, work: int) -> dict[str, float]:
  rate = size / timing.p50 / run.mesh.size
  result = {
    'batch size': size,
    'images/s per core': rate,
    'step p50, ms': timing.p50 * 1e3,
    'step p95, ms': timing.p95 * 1e3,
    'first step, s': timing.first,
    'GFLOP per image': work / 1e9,
    'GFLOP/s per core': rate * work / 1e9,
  }
  peak = flops_lib.peak_flops(run.mesh.devices.flat[0])
  return {**result, 'MFU': rate * work / peak} if peak else result


def data(run: Run, repeats: int) -> dict[str, float]:
  """Measures reading and preparing training batches, without any model.

  Worker processes deliver in turn, several batches at once, so the rate is
  that of all timed batches together: `repeats`, rounded up to full turns.
  """
  config = run.config
  readers = max(1, config.data.workers)
  count = -(-repeats // readers) * readers
  with contextlib.closing(
    pipeline.train_batches(
      run.inputs.source['train'],
      run.inputs.preprocess['train'],
      batch_size=config.batch_size,
      seed=config.seed,
      workers=config.data.workers,
      max_broken=config.data.max_broken,
    )
  ) as batches:
    timing, processor = _drained(batches, _HELD * readers, count)
  images = config.batch_size * count
  result = {
    'images/s': images / sum(timing.others),
    'batch p50, ms': timing.p50 * 1e3,
    'batch p95, ms': timing.p95 * 1e3,
    'first batch, s': timing.first,
  }
  if not config.data.workers:
    # The time of worker processes is not this one's.
    result['images per core-second'] = images / processor
  return result


def _drained(batches: Iterator, held: int, count: int) -> tuple[Timing, float]:
  """Times batches as fast as they are made.

  Args:
    batches: to take from.
    held: so many that may be waiting are taken before the timed ones.
    count: of timed ones.

  Returns:
    Seconds of each batch, and processor seconds of the timed ones.
  """
  first = _seconds(lambda: next(batches))
  for _ in range(held):
    next(batches)
  processor = time.process_time()
  others = tuple(_seconds(lambda: next(batches)) for _ in range(count))
  return Timing(first, others), time.process_time() - processor


MEASUREMENTS = {'step': step, 'inference': inference, 'data': data}
