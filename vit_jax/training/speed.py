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

from vit_jax.config import ConfigError
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


def _variables(run: Run) -> Any:
  """Allocates variables, and nothing else of a state, on the devices."""
  wanted = {'params': run.state.params, **run.state.others}
  sharding = jax.tree.map(lambda leaf: leaf.sharding, wanted)

  def init():
    return run.task.init(state_lib.random_key(run.config.seed))

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


def _functions(task: Any) -> dict[str, Callable[[Any, Any], Any]]:
  """Returns what a trained model is asked, by what it is asked about."""
  if hasattr(task, 'encode_text'):
    return {
      'image': lambda variables, x: task.encode_image(variables, x)[0],
      'text': lambda variables, x: task.encode_text(variables, x)[0],
    }
  if hasattr(task, 'predict'):
    return {'image': task.predict}
  if hasattr(task, 'intermediates'):
    return {
      'image': lambda variables, x: task.intermediates(variables, x)['pooled']
    }
  raise ConfigError(
    f'{type(task).__name__} has nothing to predict: measure --what=step,data.'
  )


def inference(run: Run, repeats: int) -> dict[str, float]:
  """Measures the model's predictions, at the batch size of evaluation.

  Of a model of images and texts, how fast it embeds the one and the other; of
  one that does not predict classes, how fast it computes features.
  """
  size = run.config.eval.batch_size or run.config.batch_size
  batch, variables = _random_batch(run, size), _variables(run)
  functions = _functions(run.task)
  result = {}
  for name, function in functions.items():
    compiled = jax.jit(function)
    timing = _time(
      lambda compiled=compiled, name=name: jax.block_until_ready(
        compiled(variables, batch[name])
      ),
      repeats,
    )
    one = run.task.batch_spec(1)[name]
    work = flops_lib.count_flops(function, variables, one)
    found = _speed(run, timing, size, work, name)
    # Of the others only what tells which it is.
    result |= {key: x for key, x in found.items() if not result or name in key}
  return result


def _speed(
  run: Run, timing: Timing, size: int, work: int, what: str = 'image'
) -> dict[str, float]:
  rate = size / timing.p50 / run.mesh.size
  result = {
    'batch size': size,
    f'{what}s/s per core': rate,
    'step p50, ms': timing.p50 * 1e3,
    'step p95, ms': timing.p95 * 1e3,
    'first step, s': timing.first,
    f'GFLOP per {what}': work / 1e9,
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
      order=run.inputs.order,
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
