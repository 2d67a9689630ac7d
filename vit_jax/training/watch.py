"""What the devices do: traces, memory, and compilations that should not be."""

import collections
import functools
import pathlib
import re
from typing import Any

import jax
import jax.monitoring

from vit_jax.config import ConfigError
from vit_jax.training import rules

_COMPILED = '/jax/core/compile/backend_compile_duration'


class Profile:
  """Traces a few steps into `workdir/profile`, for xprof or TensorBoard.

  Args:
    steps: first step and number of steps, such as '100:5', or None.
    workdir: of the run.
  """

  def __init__(self, steps: str | None, workdir: pathlib.Path):
    self._folder = workdir / 'profile'
    self._steps = range(0)
    self._running = False
    if steps is None:
      return
    match = re.fullmatch(r'([1-9]\d*):([1-9]\d*)', steps)
    if not match:
      raise ConfigError(
        f'--profile={steps} is not understood. Write the first step and how '
        'many, such as --profile=100:5.'
      )
    first, count = map(int, match.groups())
    self._steps = range(first, first + count)

  def before(self, step: int) -> None:
    """Begins the trace, if it is time to."""
    if step in self._steps and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, metrics: Any) -> None:
    """Ends the trace after its last step.

    Args:
      step: that was started.
      metrics: of it; waited for, so that the trace has all of the step.
    """
    if self._running and step == self._steps[-1]:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    """Ends a trace that is going on."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


@functools.cache
def compilations() -> collections.Counter:
  """Returns a count, kept up to date, of compilations from now on.

  `count` of them, and the `seconds` that they took; those that come from the
  cache on disk count as well.
  """
  counter = collections.Counter()

  def note(event: str, seconds: float, **unused_details) -> None:
    if event == _COMPILED:
      counter.update(count=1, seconds=seconds)

  jax.monitoring.register_event_duration_secs_listener(note)
  return counter


def memory(devices: Any) -> dict[str, float]:
  """Returns GiB in use, and the most there was, of the fullest device.

  Empty where devices do not tell, such as CPUs.
  """
  local = [d for d in devices if d.process_index == jax.process_index()]
  known = [stats for device in local if (stats := device.memory_stats())]
  names = {'bytes_in_use': 'memory/gib', 'peak_bytes_in_use': 'memory/peak_gib'}
  return {
    name: max(stats[key] for stats in known) / 2**30
    for key, name in names.items()
    if known and all(key in stats for stats in known)
  }


def difference(expected: Any, got: Any) -> list[str]:
  """Returns what makes a compiled function be compiled again.

  Args:
    expected: shapes with shardings, as the function was compiled for.
    got: the arrays that it was called with.
  """
  lines = []
  found = rules.by_path(got)
  for path, wanted in rules.by_path(expected).items():
    leaf = found.pop(path, None)
    if leaf is None:
      lines.append(f'{path} is missing')
    elif (leaf.shape, leaf.dtype) != (wanted.shape, wanted.dtype):
      lines.append(
        f'{path} is {leaf.dtype}{list(leaf.shape)}, was '
        f'{wanted.dtype}{list(wanted.shape)}'
      )
    elif not leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim):
      lines.append(f'{path} lies as {leaf.sharding}, lay as {wanted.sharding}')
  return [*lines, *(f'{path} is new' for path in found)]
