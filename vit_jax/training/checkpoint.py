"""Checkpoints of a run: written in the background, verified when read.

A directory holds one folder a step, named by its number, with two items:
  state: all arrays as a plain nested dict under the names of the tree
    (params/encoder/kernel), which any Orbax reader understands.
  meta: one JSON record, under a checksum: what the caller wants to know again,
    the metrics, and dtype, shape and checksum of every array.
Storage notices torn files but not all damage: a flipped bit can come back as
a wrong number. So checksums are taken on the devices, before and after.
"""

import functools
import json
import logging
import math
import re
import textwrap
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from vit_jax.training import powersgd

# Last words of metrics that are better when they are lower.
_LOWER_IS_BETTER = (
  'loss', 'error', 'perplexity', 'fid', 'distance', 'divergence', 'rank',
  'negative_log_likelihood',
)  # fmt: skip

# The start of the names of arrays whose first axis counts replicas.
_OF_REPLICAS = 'exchange/error/'

_NAMES_SHOWN = 20
_logger = logging.getLogger(__name__)


class CheckpointError(OSError):
  """What is on disk cannot be used, or cannot be written; says what to do."""


def lower_is_better(metric: str) -> bool:
  """Returns whether a metric is better when it is lower, by its last words."""
  words = '|'.join(_LOWER_IS_BETTER)
  return bool(re.search(f'(?<![a-z])({words})$', metric.lower()))


class Checkpoints:
  """The checkpoints of one run, in one directory.

  Only `save` writes, so an evaluation may read while the run goes on. Every
  process of a run makes the same calls to `save`, `restore` and `load`.

  Args:
    directory: where the folders are; made by the first save.
    keep: how many of the newest checkpoints stay, at least 1.
    best: metric such as 'test/accuracy' whose best checkpoint stays too, ''
      for none. Higher is better, except as `lower_is_better` says.
  """

  def __init__(self, directory, keep: int = 1, best: str = ''):
    if keep < 1:
      raise ValueError(f'keep={keep} leaves no checkpoint: keep at least 1.')
    self._directory = epath.Path(directory)
    if '://' not in str(directory):  # gs://bucket would become a local folder.
      self._directory = self._directory.absolute()
    self._keep = keep
    self._best_metric = best
    self._swept = False  # Left-overs of a killed run are gone.
    self._pending = None  # (step, response) of the save under way.
    self._damaged = set()  # Steps found damaged by reading them.

  def __enter__(self):
    return self

  def __exit__(self, *unused_exception):
    self.close()

  def steps(self) -> list[int]:
    """Finished checkpoints on disk, ascending, once no save is under way."""
    self.wait()
    if not self._directory.exists():
      return []
    names = [path.name for path in self._directory.iterdir()]
    return sorted(int(name) for name in names if re.fullmatch(r'\d+', name))

  def latest(self) -> int | None:
    """The newest of `steps`, None if there is none."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the best finite metric, the first of equals, or None."""
    return self._best_of(self.steps())

  def save(
    self,
    step: int,
    state,
    meta: dict,
    metrics: dict | None = None,
    wait: bool = False,
  ) -> None:
    """Saves in the background; `state` may be donated on return.

    Blocks until arrays are in host memory, and for a save still under way.

    Args:
      step: the training step, one that is not saved yet.
      state: any pytree of jax.Arrays, on any mesh.
      meta: JSON values, given back by `restore` and `load`.
      metrics: numbers by name, measured at this step, for `best`.
      wait: return only when the checkpoint is finished on disk.

    Raises:
      CheckpointError: this save, or the one before, could not be written.
      TypeError: a leaf is no jax.Array, or `meta` is no JSON.
      ValueError: the step is saved already, or the best metric is missing.
    """
    if step in self.steps() and step not in self._damaged:
      raise ValueError(
        f'Step {step} is already saved in {self._directory}: restore it, or '
        'use another directory.'
      )
    if metrics is not None and self._best_metric not in {'', *metrics}:
      raise ValueError(
        f'The best checkpoint is chosen by {self._best_metric!r}, which is not '
        f'among the metrics {sorted(metrics)}.'
      )
    arrays = _named_leaves(state)
    metrics = metrics and {name: float(metrics[name]) for name in metrics}
    record = _seal(step, meta, metrics, _describe(arrays))
    try:
      if not self._swept and jax.process_index() == 0:
        self._sweep()
      self._swept = True
      self._pending = step, self._start(step, arrays, record)
    except Exception as error:
      raise self._failure(step, error) from error
    self._damaged.discard(step)
    if wait:
      self.wait()

  def wait(self) -> None:
    """Finishes the save under way, then removes what need not stay.

    Raises:
      CheckpointError: it failed; what was saved before is untouched.
    """
    if self._pending is None:
      return
    (step, response), self._pending = self._pending, None
    try:
      response.result()
      if jax.process_index() == 0:
        self._prune()
    except Exception as error:
      raise self._failure(step, error) from error

  def close(self) -> None:
    """Finishes the save under way and its threads; raises as `wait` does."""
    self.wait()

  def restore(self, abstract_state):
    """Reads the newest intact checkpoint, warning of damaged ones.

    Args:
      abstract_state: tree of jax.ShapeDtypeStruct. Arrays go to the sharding
        of each, on whatever mesh they were saved; without one, to one device.
        What replicas kept of compressed gradients is shared out anew where
        there is another number of them, see `powersgd.redistributed`.

    Returns:
      (state, meta, step), or None if there is no checkpoint at all.

    Raises:
      CheckpointError: the newest intact checkpoint is of another tree.
      CheckpointError: there are checkpoints, but all of them are damaged.
    """
    steps = self.steps()
    if not steps:
      return None
    wanted = _named_leaves(abstract_state)

    def plan(saved, folder):
      held = {n: _as_saved(n, leaf, saved) for n, leaf in wanted.items()}
      _check_tree(saved, held, folder)
      return {name: _placed(leaf) for name, leaf in held.items()}

    arrays, meta, step = self._newest_intact(steps, plan)
    structure = jax.tree.structure(abstract_state)
    # Taken out one by one, so that none stays in memory in both forms.
    leaves = [
      _for_replicas(arrays.pop(name), leaf) for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(structure, leaves), meta, step

  def load(self, names=(), step=None):
    """Reads parts of a checkpoint into host memory, for evaluation.

    Args:
      names: sub-trees such as ('params', 'average/encoder'); () for all.
      step: a number, 'best', or None for the newest intact one.

    Returns:
      (tree, meta, step): a nested dict of numpy arrays under their full names.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      KeyError: it has nothing under one of `names`.
      CheckpointError: it is damaged (for None: all of them are).
    """
    steps = self.steps()
    chosen = self.best() if step == 'best' else step
    if not steps or (step is not None and chosen not in steps):
      raise FileNotFoundError(
        f'No checkpoint for step={step!r} in {self._directory}: it has steps '
        f'{steps}, the best by {self._best_metric!r} is {self.best()}.'
      )

    def plan(saved, folder):
      # Memory of `empty` is not touched: it only tells shape and dtype.
      return {
        name: np.empty(saved[name][1], jnp.dtype(saved[name][0]))
        for name in _select(saved, names, folder)
      }

    steps = steps if step is None else [chosen]
    arrays, meta, step = self._newest_intact(steps, plan)
    return traverse_util.unflatten_dict(arrays, sep='/'), meta, step

  def _newest_intact(self, steps, plan):
    """Reads what `plan` asks for; an error of `plan` itself is no damage."""
    reasons = ''
    for step in reversed(steps):
      folder = self._directory / str(step)
      record, reason = _tried(_read_record, folder, step)
      if not reason:
        abstract = plan(record['arrays'], folder)
        arrays, reason = _tried(
          _read_arrays, folder, abstract, record['arrays']
        )
      if not reason:
        return arrays, record['meta'], step
      self._note_damage(step, reason)
      reasons += f'\n  {step}: {reason}'
    raise CheckpointError(
      f'No intact checkpoint in {self._directory}:{reasons}\nPut back a copy '
      'of one of these folders, or move the directory away to start anew.'
    )

  def _note_damage(self, step, reason) -> None:
    self._damaged.add(step)
    message = 'The checkpoint of step %d in %s is damaged and left out: %s'
    _logger.warning(message, step, self._directory, reason)

  def _best_of(self, steps) -> int | None:
    sign = -1 if lower_is_better(self._best_metric) else 1
    scores = {}
    for step in steps if self._best_metric else ():
      record, reason = _tried(_read_record, self._directory / str(step), step)
      if reason:
        self._note_damage(step, reason)
        continue
      score = (record['metrics'] or {}).get(self._best_metric, math.nan)
      if math.isfinite(score):
        scores[step] = sign * score
    return max(scores, key=scores.get, default=None)

  def _start(self, step, arrays, record):
    registry = ocp.handlers.local_registry()
    # Else the numbers in it would be stored as arrays.
    registry.add(ocp.handlers.JsonHandler, checkpointable_name='meta')
    context = ocp.Context()
    context.checkpointables.registry = registry
    # Where a folder cannot be made in the background, the threads that wait
    # for it keep the process from ending for minutes.
    context.asynchronous.create_directories_asynchronously = False
    state = traverse_util.unflatten_dict(arrays, sep='/')
    with context:
      return ocp.save_checkpointables_async(
        self._directory / str(step),
        {'state': state, 'meta': record},
        overwrite=step in self._damaged,
      )

  def _prune(self) -> None:
    steps = self.steps()
    # Damaged ones do not count, or they would push intact ones out.
    intact = [step for step in steps if step not in self._damaged]
    kept = {*intact[-self._keep :], self._best_of(intact)}
    for step in steps:
      if step not in kept:
        (self._directory / str(step)).rmtree()

  def _sweep(self) -> None:
    """Removes what a killed save left behind."""
    if self._directory.exists():
      for path in self._directory.iterdir():
        if re.match(r'\d+\.orbax-checkpoint-tmp', path.name):
          path.rmtree()

  def _failure(self, step, error) -> CheckpointError:
    self._swept = False  # It may have left something behind.
    return CheckpointError(
      f'Saving step {step} in {self._directory} failed '
      f'({type(error).__name__}: {error}). Earlier checkpoints are untouched. '
      'Make room, or allow writing there, and start the run again.'
    )


def _tried(read, *arguments):
  """Returns (result, ''), or (None, reason): damage can raise any error."""
  try:
    return read(*arguments), ''
  except Exception as error:
    # Storage tells its whole configuration with each error.
    return None, textwrap.shorten(f'{type(error).__name__}: {error}', 400)


def _named_leaves(tree) -> dict:
  """Returns {'params/encoder/kernel': leaf}; None and empty nodes vanish."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  if len(named) < len(leaves):
    raise ValueError(f'Two leaves of the state share a name: {list(named)}.')
  for name, leaf in named.items():
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
      raise TypeError(
        f'The leaf {name!r} of the state is of {type(leaf)}, expected '
        'jax.Array: wrap numbers in jnp.asarray.'
      )
  return named


def _describe(arrays: dict) -> dict:
  """Returns {name: [dtype, shape, checksum]}, as JSON gives it back."""
  # One call a leaf: equal shapes share one compilation, and leaves may be on
  # different devices. One at a time: simulated devices share few threads, and
  # sums across them that run at once can wait for each other for ever.
  return {
    name: [str(array.dtype), list(array.shape), int(_checksum(array))]
    for name, array in arrays.items()
  }


@jax.jit
def _checksum(array):
  """Returns a uint32 that any change of one element changes.

  The finalizer of MurmurHash3, a bijection, mixes each element with its
  position; the sum modulo 2**32 is exact, hence the same for any sharding.
  """
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  bits = jax.lax.bitcast_convert_type(array, unsigned[array.dtype.itemsize])
  position = jnp.uint32(0)
  for axis, size in enumerate(bits.shape):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position = position * jnp.uint32(size) + along
  mixed = bits.astype(jnp.uint32) ^ (position * jnp.uint32(0x9E3779B1))
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
  mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _seal(step, meta, metrics, arrays) -> dict:
  record = {'step': step, 'meta': meta, 'metrics': metrics, 'arrays': arrays}
  try:
    # As it will be read: tuples become lists, and keys strings.
    record = json.loads(json.dumps(record))
  except (TypeError, ValueError) as error:
    raise TypeError(f'The meta of step {step} is no JSON: {error}.') from error
  return {**record, 'crc32': _crc32(record)}


def _crc32(record: dict) -> int:
  return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _read_record(folder, step: int) -> dict:
  # As a file, because Orbax readers wait for all processes, but one process
  # alone may ask for the best step.
  record = json.loads((folder / 'meta' / 'data.json').read_text())
  if record.pop('crc32', None) != _crc32(record):
    raise ValueError('meta/data.json does not match its checksum')
  if record['step'] != step:
    raise ValueError(f'the folder holds step {record["step"]}')
  return record


def _read_arrays(folder, abstract: dict, saved: dict) -> dict:
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  with context:
    tree = ocp.load(folder, traverse_util.unflatten_dict(abstract, sep='/'))
  arrays = traverse_util.flatten_dict(tree, sep='/')
  found = _describe(arrays)
  wrong = [name for name in found if found[name] != saved[name]]
  if wrong:
    raise ValueError(f'arrays differ from what was saved:{_lines(wrong)}')
  return arrays


def _placed(leaf) -> jax.ShapeDtypeStruct:
  sharding = leaf.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  sharding.shard_shape(leaf.shape)  # Raises where it does not divide.
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as_saved(
  name: str, leaf: jax.ShapeDtypeStruct, saved: dict
) -> jax.ShapeDtypeStruct:
  """Returns a leaf for as many replicas as were saved, if it has them."""
  if not name.startswith(_OF_REPLICAS) or name not in saved:
    return leaf
  replicas, *shape = saved[name][1]
  if [replicas, *shape] == [*leaf.shape] or shape != [*leaf.shape[1:]]:
    return leaf
  sharding = leaf.sharding
  if sharding is not None and replicas % leaf.shape[0]:
    # It does not divide, so each device reads what all replicas had.
    spec = jax.sharding.PartitionSpec(None, *sharding.spec[1:])
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  return jax.ShapeDtypeStruct((replicas, *shape), leaf.dtype, sharding=sharding)


def _for_replicas(array, leaf: jax.ShapeDtypeStruct):
  """Returns what was read for the replicas of a leaf; its bits if it can."""
  if array.shape == leaf.shape:
    return array
  share = functools.partial(powersgd.redistributed, replicas=leaf.shape[0])
  share = jax.jit(share, out_shardings=_placed(leaf).sharding)
  # One at a time, as in `_describe`.
  return jax.block_until_ready(share(array))


def _select(saved: dict, names, folder) -> list[str]:
  for name in names:
    if not any(f'{key}/'.startswith(f'{name}/') for key in saved):
      top = sorted({key.split('/')[0] for key in saved})
      raise KeyError(f'{folder} has nothing under {name!r}; it has {top}.')
  prefixes = tuple(f'{name}/' for name in names) or ('',)
  return [key for key in saved if f'{key}/'.startswith(prefixes)]


def _check_tree(saved: dict, wanted: dict, folder) -> None:
  """Raises CheckpointError with what differs in names, shapes and dtypes."""
  asked = {n: f'{leaf.dtype}{list(leaf.shape)}' for n, leaf in wanted.items()}
  held = {n: f'{dtype}{shape}' for n, (dtype, shape, _) in saved.items()}
  if asked == held:
    return
  missing = [f'{n} {asked[n]}' for n in asked if n not in held]
  unexpected = [f'{n} {held[n]}' for n in held if n not in asked]
  other = [
    f'{n}: checkpoint {held[n]}, expected {asked[n]}'
    for n in asked
    if held.get(n, asked[n]) != asked[n]
  ]
  raise CheckpointError(
    f'The checkpoint {folder} is of another model or optimizer.\n'
    f'missing in it:{_lines(missing)}\n'
    f'unexpected in it:{_lines(unexpected)}\n'
    f'of another dtype or shape:{_lines(other)}\n'
    'Use the config that the run was started with, or another directory.'
  )


def _lines(items: list[str]) -> str:
  more = len(items) - _NAMES_SHOWN
  items = items[:_NAMES_SHOWN] + ([f'and {more} more'] if more > 0 else [])
  return ''.join(f'\n  {item}' for item in items) or ' none'
