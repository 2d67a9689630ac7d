"""How fast a configuration runs here: its step, its inference, its data.

Each measurement is of the very functions that training uses.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data import pipeline
from vit_jax.training import flops as flops_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of calls that follow each other.

  Attributes:
    first: of the first call, compilation included.
    p50: median of the others.
    p95: what 95 % of the others stay under.
  """

  first: float
  p50: float
  p95: float


def _time(call: Callable[[], Any], repeats: int) -> Timing:
  """Times `call`, which has to wait for its own result."""
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  first, *others = seconds
  return Timing(
    first, float(np.median(others)), float(np.quantile(others, 0.95))
  )


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


def step(run: Run, repeats: int) -> dict[str, float]:
  """Measures training steps on a batch that is already on the devices."""
  batch = _random_batch(run, run.config.batch_size)
  state = run.init()

  def call():
    nonlocal state
    state, metrics = run.train_step(state, batch)
    jax.block_until_ready((state, metrics))

  timing = _time(call, repeats)
  work = flops_lib.training_flops(run.task, run.state.params)
  return _speed(run, timing, run.config.batch_size, work)


def inference(run: Run, repeats: int) -> dict[str, float]:
  """Measures the model's predictions, at the batch size of evaluation."""
  size = run.config.eval.batch_size or run.config.batch_size
  image = _random_batch(run, size)['image']
  variables = jax.block_until_ready(run.init()).evaluated
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
  """Measures reading and preparing training batches, without any model."""
  config = run.config
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
    processor = time.process_time()
    timing = _time(lambda: next(batches), repeats)
    processor = time.process_time() - processor
  seconds = timing.p50
  result = {
    'images/s': config.batch_size / seconds,
    'batch p50, ms': seconds * 1e3,
    'batch p95, ms': timing.p95 * 1e3,
    'first batch, s': timing.first,
  }
  if not config.data.workers:
    # The time of worker processes is not this one's.
    images = config.batch_size * (repeats + 1)
    result['images per core-second'] = images / processor
  return result


MEASUREMENTS = {'step': step, 'inference': inference, 'data': data}
