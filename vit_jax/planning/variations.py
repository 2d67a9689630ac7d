"""One configuration in many variations: what fits, and what is fastest."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.planning import estimate, topologies
from vit_jax.planning.estimate import Plan
from vit_jax.planning.topologies import Topology
from vit_jax.training import run as run_lib
from vit_jax.training import schema

# Says what is being compiled, for as long as that takes.
Waiting = Callable[[str], contextlib.AbstractContextManager]
# From a topology and overrides of the configuration to a plan.
Planner = Callable[[Topology, Sequence[str]], Plan]
Named = tuple[str, Plan]

# Above this share of the memory the compiler has had to squeeze.
_FULL = 0.9
# A largest batch is found to one part in so many.
_PRECISION = 16


def planner(
  config: Any, name: str, folder: pathlib.Path, waiting: Waiting
) -> Planner:
  """Returns what plans variations of a configuration.

  Args:
    config: complete, see `vit_jax.config.resolve`.
    name: of the configuration.
    folder: where results are remembered.
    waiting: tells the person in front of it.
  """
  return functools.partial(_plan, config, name, folder, waiting)


def _plan(
  config: Any,
  name: str,
  folder: pathlib.Path,
  waiting: Waiting,
  topology: Topology,
  overrides: Sequence[str] = (),
) -> Plan:
  varied = config_lib.resolve(config, overrides, schema.SCHEMA)
  run = run_lib.prepare(varied, topologies.devices(topology), planned=True)
  with waiting(' '.join([name, 'for', topology.name, *overrides])):
    return estimate.of_run(run, topology, folder)


def remedies(config: Any, plan: Plan) -> Iterator[list[str]]:
  """Yields overrides that may make a plan fit.

  First what leaves the result of training as it is, one thing at a time and
  then together; smaller batches come last.

  Args:
    config: complete.
    plan: of this configuration; it does not fit.
  """
  whole = not (config.mesh.split_optimizer or config.optimizer.compression_rank)
  if whole and plan.mesh['data'] > 1:
    yield ['--config.mesh.split_optimizer=True']
  remat = _with_remat(config.model, 'full')
  if remat:
    yield _with_remat(config.model, 'names')
    yield remat
  micro = _accumulations(plan)
  # With fewer micro-batches their activations would still be far too large.
  needed = plan.result.needed_bytes or 0
  least = needed / (plan.topology.kind.hbm_gib * 2**30) / 2
  yield from ([override] for times, override in micro if times >= least)
  micro = [override for _, override in micro[-1:]]
  split = []
  if plan.mesh['fsdp'] == 1 and plan.mesh['data'] > 1:
    split = ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
    yield split
  for some in ((split, remat), (split, micro), (split, remat, micro)):
    if sum(map(bool, some)) > 1:
      yield [override for overrides in some for override in overrides]
  unit = _batch_unit(plan)
  units = plan.images // unit
  while units := units // 2:
    yield [*split, *remat, f'--config.batch_size={units * unit}']


def _with_remat(section: Any, remat: str, path: str = 'model') -> list[str]:
  """Returns overrides for each part of a model that computes nothing again."""
  overrides = []
  for name, value in section.items():
    if isinstance(value, ConfigDict):
      overrides += _with_remat(value, remat, f'{path}.{name}')
    elif name == 'remat' and value in ('none', 'auto'):
      overrides.append(f'--config.{path}.remat={remat}')
  return overrides


def _batch_unit(plan: Plan) -> int:
  """Returns what a batch has to be a multiple of."""
  return plan.mesh['data'] * plan.mesh['fsdp'] * plan.accumulate


def _accumulations(plan: Plan) -> list[tuple[int, str]]:
  """Returns how many times as many micro-batches can be, and the override."""
  unit = _batch_unit(plan)
  result, times = [], 2
  while plan.images % (unit * times) == 0:
    count = plan.accumulate * times
    result.append((times, f'--config.optimizer.accumulate={count}'))
    times *= 2
  return result


def first_that_fits(
  config: Any, plan: Plan, plan_with: Planner
) -> tuple[list[str], Plan]:
  """Compiles remedies until one fits.

  If that one fills the memory, the compiler will have computed things again
  to make it fit: then the next one that fits is tried as well, and the faster
  of both is taken.

  Returns:
    The overrides of the configuration, and the plan with them.

  Raises:
    ConfigError: nothing fits.
  """
  full = _FULL * plan.topology.kind.hbm_gib * 2**30
  fitting = []
  for overrides in remedies(config, plan):
    if fitting and overrides[-1].startswith('--config.batch_size='):
      break  # Another batch size is another training.
    try:
      tried = plan_with(plan.topology, overrides)
    except ConfigError:
      continue  # Not for this model: batch norm wants no parts, for example.
    if tried.result.fits:
      fitting.append((overrides, tried))
      if tried.result.needed_bytes < full or len(fitting) == 2:
        break
  if not fitting:
    raise ConfigError(
      f'This does not fit {plan.topology.name} at any batch size, with '
      'parameters split and everything computed again. Choose a larger '
      '--topology or a smaller model.'
    )
  return max(fitting, key=lambda pair: pair[1].images_per_s)


def largest(fits: Callable[[int], bool], start: int) -> int:
  """Returns about the largest number that fits, 0 if none does.

  Args:
    fits: whether a number does; if one does, all smaller ones do.
    start: the first to be tried, 1 or more.
  """
  low, high = 0, None
  trying = start
  while high is None or high - low > max(1, low // _PRECISION):
    if fits(trying):
      low = trying
    else:
      high = trying
    trying = 2 * low if high is None else (low + high) // 2
    if trying == low:
      break
  return low


def guess(plan: Plan) -> int:
  """Returns how many images should fit, if activations grow with them.

  Args:
    plan: that fits.
  """
  activations = plan.result.memory['activations and temporaries']
  free = plan.topology.kind.hbm_gib * 2**30 - plan.result.needed_bytes
  # Parts that are never in use at once may add up to more than there is.
  return int(plan.images * (1 + 0.9 * max(0, free) / activations))


def over_batches(topology: Topology, plan_with: Planner) -> list[Named]:
  """Searches the largest batch; returns every plan that was tried.

  All of them have as many micro-batches: if these followed from the size, a
  larger batch could fit where a smaller one does not.

  Raises:
    ConfigError: no batch fits.
  """
  tried = {}
  given = plan_with(topology, ())
  unit = _batch_unit(given)
  same_parts = f'--config.optimizer.accumulate={given.accumulate}'

  def fits(units):
    size = units * unit
    if size not in tried:
      # A schedule may have a length in steps: the run keeps its own.
      plan = plan_with(
        topology,
        [
          f'--config.batch_size={size}',
          f'--config.total={given.steps}steps',
          same_parts,
        ],
      )
      steps = math.ceil(given.steps * given.images / size)
      tried[size] = dataclasses.replace(plan, steps=steps)
    return tried[size].result.fits

  tried[given.images] = given
  start = guess(given) if given.result.fits else given.images
  if not largest(fits, start // unit):
    raise ConfigError(
      f'Not even a batch of {unit} fits {topology.name}: choose a larger '
      '--topology, or see without --sweep what would make it fit.'
    )
  return [('', tried[size]) for size in sorted(tried)]


def over_topologies(
  names: Sequence[str], plan_with: Planner
) -> tuple[list[Named], list[str]]:
  """Plans for one topology after the other.

  Returns:
    The plans by the name of the topology, and what is wrong with those that
    cannot be planned for.

  Raises:
    ConfigError: a topology is not known, or none can be planned for.
  """
  plans, refused = [], []
  for topology in [topologies.parse(name) for name in names]:
    try:
      plans.append((topology.name, plan_with(topology, ())))
    except ConfigError as error:
      refused.append(f'{topology.name}: {error}')
  if not plans:
    reasons = dict.fromkeys(line.partition(': ')[2] for line in refused)
    raise ConfigError('\n'.join(reasons))
  return plans, refused
