"""Where parameters start: fresh, from another run, or a released checkpoint."""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.models import position
from vit_jax.training import build, rules, saved, whole_files
from vit_jax.training import frozen as frozen_lib
from vit_jax.training.run import Run
from vit_jax.training.state import State

Grid = tuple[int, int]


# Parameters with the same fate that are named, at most.
_NAMED = 6


@dataclasses.dataclass
class Origin:
  """Where each parameter of a run that did not start fresh has come from.

  Attributes:
    path: the run or the released checkpoint that it started from.
    step: of that run.
    loaded: parameters taken as they are.
    resized: position embeddings made to fit another grid, and the two grids.
    fresh: parameters left at their initial value, and why.
    left_out: parameters of the checkpoint that this model does not take.
  """

  path: str
  step: int
  loaded: list[str] = dataclasses.field(default_factory=list)
  resized: dict[str, str] = dataclasses.field(default_factory=dict)
  fresh: dict[str, str] = dataclasses.field(default_factory=dict)
  left_out: list[str] = dataclasses.field(default_factory=list)

  def write(self, path: pathlib.Path) -> None:
    """Writes all of it as JSON."""
    text = json.dumps(dataclasses.asdict(self), indent=2) + '\n'
    whole_files.write(path, text)

  def lines(self) -> list[str]:
    """Says it in a few lines, for a person."""
    of_step = f' (step {self.step:,})' if self.step else ''
    lines = [
      f'Starts from {self.path}{of_step}:',
      f'  loaded    {len(self.loaded)} parameters',
    ]
    lines += [
      f'  resized   {name}: {how}' for name, how in self.resized.items()
    ]
    lines += [f'  fresh     {line}' for line in _shortened(self.fresh)]
    left_out = dict.fromkeys(self.left_out, '')
    lines += [f'  left out  {line}' for line in _shortened(left_out)]
    return lines


def _shortened(reasons: Mapping[str, str]) -> list[str]:
  """Returns a line a parameter, or one for many that begin and end alike."""
  groups = collections.defaultdict(list)
  for path, why in reasons.items():
    groups[path.partition('/')[0], why].append(path)
  lines = []
  for (top, why), paths in groups.items():
    names = paths
    if len(paths) > _NAMED:
      names = [f'{top}/... ({len(paths)} parameters)']
    lines += [f'{name}: {why}' if why else name for name in names]
  return lines


def initial_state(run: Run) -> tuple[State, Origin | None]:
  """Allocates the state of a new run; says where it came from if not fresh.

  Raises:
    ConfigError: `config.init` names no trained model, or it does not fit.
    CheckpointError: the run to start from is damaged.
  """
  init = run.config.init
  if not init.path:
    return run.init(), None
  try:
    found = saved.read(
      epath.Path(init.path), grid=init.grid or None, told=saved.told(init)
    )
  except ConfigError as error:
    raise ConfigError(f'config.init: {error}') from error
  origin = Origin(init.path, found.step)
  taken = _fit(run, found, origin)

  def pick(path: str, leaf: jax.Array) -> jax.Array:
    if path not in taken:
      return leaf
    return jax.device_put(taken[path].astype(leaf.dtype), leaf.sharding)

  state = run.init()
  params = rules.map_by_path(pick, state.params)
  average = state.average
  if average is not None:
    average = jax.tree.map(lambda leaf: leaf.copy(), params)
  others = _others(run.config.init, found, state.others, params)
  return state.replace(params=params, average=average, others=others), origin


def _others(init: Any, found: saved.Saved, fresh: Any, params: Any) -> Any:
  """Returns statistics as they were, and a target that is the model."""
  others = dict(fresh)
  had = found.others.get('batch_stats', {})
  had = _moved(init, rules.by_path(had)) if had else {}

  def pick(path: str, leaf: jax.Array) -> jax.Array:
    named = any(re.fullmatch(pattern, path) for pattern in init.fresh)
    if named or path not in had or had[path].shape != leaf.shape:
      return leaf
    return jax.device_put(had[path].astype(leaf.dtype), leaf.sharding)

  if 'batch_stats' in others:
    others['batch_stats'] = rules.map_by_path(pick, others['batch_stats'])
  if 'target' in others:
    online = {'params': params, 'batch_stats': others['batch_stats']}
    others['target'] = dict(others['target'])
    for name, tree in online.items():
      values = rules.by_path(tree)
      # Copies: a training step gives the memory of each array away.
      others['target'][name] = rules.map_by_path(
        lambda path, leaf, values=values: values[path].copy(),
        others['target'][name],
      )
  return others


def _fit(run: Run, found: saved.Saved, origin: Origin) -> dict[str, np.ndarray]:
  """Returns what to load, by path; notes in `origin` what becomes of the rest.

  Raises:
    ConfigError: something does not fit that `config.init.fresh` does not name.
  """
  init = run.config.init
  params = _part(init, _unstacked(rules.by_path(found.params)))
  wanted = {
    part: shape if part == path else shape[1:]
    for path, shape in rules.shapes_by_path(run.state.params).items()
    for part in _parts(path, *shape[:1])
  }
  rules.check(
    tuple((pattern, True) for pattern in init.fresh),
    {**wanted, **params},
    'config.init.fresh',
  )
  why_fresh = _why_fresh(run, found, wanted, params)
  for path in (*wanted, *params):
    if any(re.fullmatch(pattern, path) for pattern in init.fresh):
      why_fresh[path] = 'named by config.init.fresh'
  grids = _grid(run.task), _grid(_task_of(found))
  for path in sorted(params.keys() & wanted.keys() - why_fresh.keys()):
    # Words have positions too, but no grid.
    of_image = not path.startswith('text/')
    if (
      path.endswith('position/embedding') and of_image and grids[0] != grids[1]
    ):
      old, new = grids[1], grids[0]
      params[path] = position.resize(params[path], old, new, init.resize)
      origin.resized[path] = f'{old[0]}x{old[1]} to {new[0]}x{new[1]} patches'
  wrong = rules.misfits(
    {path: wanted[path] for path in wanted.keys() - why_fresh.keys()},
    {path: params[path].shape for path in params.keys() - why_fresh.keys()},
  )
  if wrong:
    raise ConfigError(
      f'Parameters of {init.path} do not fit:\n'
      + '\n'.join(wrong)
      + '\nMake config.model the same, or name those that should start fresh '
      "or be left out in config.init.fresh, such as ('position/.*',)."
    )
  origin.fresh = {path: why_fresh[path] for path in wanted if path in why_fresh}
  origin.left_out = sorted(params.keys() - wanted.keys())
  taken = {path: params[path] for path in wanted if path not in why_fresh}
  origin.loaded = [path for path in taken if path not in origin.resized]
  return _stacked_like(run.state.params, taken)


def _why_fresh(
  run: Run, found: saved.Saved, wanted: Mapping, params: Mapping
) -> dict[str, str]:
  """Returns the parameters that say other classes, and why they start fresh."""
  result = {}
  heads = f'{run.config.init.into}/'.lstrip('/')
  besides = {}
  for path in {*wanted, *params}:
    if not path.startswith(heads):
      besides[path] = f'not of {run.config.init.into}'
    elif path.startswith('task/'):
      besides[path] = 'of the task, not of the model'
  for path in {*wanted, *params}:
    if path.startswith(f'{heads}pre_logits/') and path not in wanted:
      # As the released code does, whose fine-tuned models have none.
      result[path] = 'this model has no such layer'
  had, has = found.known.class_names, run.inputs.known.class_names
  if result:
    why = 'it read another layer'
  elif len(had) != len(has):
    why = f'{len(had)} classes there, {len(has)} here'
  elif found.names_known and had != tuple(has):
    why = 'other classes'
  else:
    return {**besides, **result}
  for path in {*wanted, *params}:
    if path.startswith(f'{heads}head/'):
      result[path] = why
  return {**besides, **result}


def _moved(
  init: Any, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the arrays of `init.part` by their paths in this model."""
  part, into = (f'{x}/'.lstrip('/') for x in (init.part, init.into))
  return {
    into + path.removeprefix(part): value
    for path, value in arrays.items()
    if path.startswith(part)
  }


def _part(init: Any, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the parameters of `init.part`, by their paths in this model."""
  result = _moved(init, params)
  if not result:
    tops = sorted({path.partition('/')[0] for path in params})
    raise ConfigError(
      f'config.init.part is {init.part!r}, but {init.path} has no such part.'
      f'{did_you_mean(init.part, tops)}'
    )
  return result


def _task_of(found: saved.Saved) -> Any:
  frozen = frozen_lib.of_meta(found.teacher)
  return build.make_task(found.config, found.known, frozen=frozen)


def _grid(task: Any) -> Grid | None:
  """Returns rows and columns of a model's patches; None if it has none."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  if not hasattr(task, 'intermediates'):
    return None
  image = task.batch_spec(1)['image']
  variables = jax.eval_shape(task.init, key)
  intermediates = jax.eval_shape(task.intermediates, variables, image)
  patches = intermediates.get('patches')
  return None if patches is None else tuple(patches.shape[1:3])


def _parts(path: str, depth: int = 0) -> list[str]:
  """Returns the paths of what a scanned model stacks under one path."""
  if '/blocks/' not in path:
    return [path]
  return [path.replace('/blocks/', f'/block_{i:02d}/') for i in range(depth)]


def _unstacked(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Gives each block of a scanned model its own parameters, by path."""
  result = {}
  for path, value in params.items():
    parts = _parts(path, *value.shape[:1])
    result |= zip(parts, [value] if parts == [path] else value)
  return result


def _stacked_like(params: Any, taken: Mapping) -> dict[str, np.ndarray]:
  """Gives the blocks back their common parameters, where the model scans."""
  result = {}
  for path, shape in rules.shapes_by_path(params).items():
    parts = _parts(path, *shape[:1])
    missing = [part for part in parts if part not in taken]
    if missing and len(missing) < len(parts):
      raise ConfigError(
        f'config.init.fresh leaves {missing[0]} fresh but not all blocks, '
        'which one array holds in a model that scans. Name all of them, or use '
        '--config.model.scan=false.'
      )
    if not missing:
      values = [taken[part] for part in parts]
      result[path] = values[0] if parts == [path] else np.stack(values)
  return result
