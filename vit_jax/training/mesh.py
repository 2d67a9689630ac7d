"""The devices as one mesh `data x fsdp x tensor`, and what lies where.

`data` splits the batch. `fsdp` splits the batch and the parameters, which are
gathered when they are used. `tensor` splits attention heads and the hidden
layer of MLPs. What `pmap` did is `data` alone, the default.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.config import ConfigError
from vit_jax.models import layers
from vit_jax.training import rules

AXES = ('data', 'fsdp', 'tensor')
BATCH = PartitionSpec(layers.BATCH)

# Which parameters are split how: axes of the mesh, each with the axis of the
# parameter that it splits, counted from the end (stacked layers come first).
# 'fsdp' without an axis takes the largest one that is free and divisible.
RULES = (
  # [..., width, heads, depth]
  (r'.*/(query|key|value)/kernel', 'tensor@-2 fsdp'),
  (r'.*/(query|key|value)/bias', 'tensor@-2'),
  # [..., heads, depth, width]
  (r'.*/attention/out/kernel', 'tensor@-3 fsdp'),
  (r'.*mlp/up/kernel', 'tensor@-1 fsdp'),
  (r'.*mlp/up/bias', 'tensor@-1'),
  (r'.*mlp/down/kernel', 'tensor@-2 fsdp'),
  (r'.*', 'fsdp'),
)
# Parts of a state that only the optimizer reads.
_OF_OPTIMIZER = ('optimizer', 'average')
_WORD = rf'replicate|fsdp|({"|".join(AXES)})@-?[0-9]+'


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys of `config.mesh`: devices along each axis; -1 is the rest."""

  data: int = -1
  # None: as the memory of a device asks for, see `vit_jax.training.defaults`.
  fsdp: int | None = None
  tensor: int = 1
  # Whether the optimizer's moments, and the average of the parameters, are
  # split over `data` as well (ZeRO, stage 1: Rajbhandari et al.,
  # arXiv:1910.02054). Costs a gather of the updates in each step; smaller
  # parameters are left out as with `fsdp`.
  split_optimizer: bool = False
  # (regular expression, split) pairs, tried before RULES of this file.
  rules: tuple = ()
  # Smaller parameters are not worth gathering: every device keeps them.
  fsdp_minimum_mib: float = 4.0


def make(settings: Any, devices: Sequence[Any] | None = None) -> Mesh:
  """Arranges devices (all there are) as the settings say."""
  devices = list(devices or jax.devices())
  fsdp = 1 if settings.fsdp is None else settings.fsdp
  sizes = [settings.data, fsdp, settings.tensor]
  known = math.prod(size for size in sizes if size != -1)
  said = ' x '.join(f'{name}={size}' for name, size in zip(AXES, sizes))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ConfigError(
      f'config.mesh is {said}: sizes are 1 or more, and one may be -1, '
      'which stands for the rest of the devices.'
    )
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise ConfigError(
      f'config.mesh is {said}, which does not fit {len(devices)} devices: '
      'the product of the axes must be the number of devices.'
    )
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  return jax.make_mesh(
    sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def _check_rule(how: Any) -> None:
  """Raises ConfigError for a split that is not written as in RULES."""
  words = how.split() if isinstance(how, str) else []
  names = [word.partition('@')[0] for word in words]
  if (
    not words
    or len(set(names)) < len(names)
    or not all(re.fullmatch(_WORD, word) for word in words)
  ):
    raise ConfigError(
      f'config.mesh.rules says {how!r}, expected words such as '
      "'replicate', 'tensor@-1', 'fsdp@0', or 'fsdp' for any axis, each "
      'axis of the mesh once.'
    )


def _split(
  path: str, shape: tuple[int, ...], how: str, mesh: Mesh, smallest: float
) -> PartitionSpec:
  """Returns how a parameter of this shape is split by the rule `how`."""
  axes = [None] * len(shape)
  for word in how.split():
    name, _, at = word.partition('@')
    if name == 'replicate':
      continue
    if at and not -len(shape) <= int(at) < len(shape):
      raise ConfigError(
        f'{path} with shape {shape} has no axis {at}, which {word!r} of '
        'config.mesh.rules splits.'
      )
    size = mesh.shape[name]
    if size == 1:
      continue
    if at:
      at = int(at)
      if shape[at] % size:
        raise ConfigError(
          f'{path} with shape {shape} cannot be split by {word!r} over '
          f'mesh.{name}={size}: {size} must divide that axis.'
        )
      if axes[at]:
        raise ConfigError(
          f'config.mesh.rules says {how!r}, which splits one axis of {path} '
          f'with shape {shape} twice.'
        )
      axes[at] = name
    elif math.prod(shape) * 4 >= smallest * 2**20:
      # Stacked layers are taken one at a time: their axis stays whole.
      first = 1 if '/blocks/' in path else 0
      free = [
        i
        for i in range(first, len(shape))
        if axes[i] is None and shape[i] % size == 0
      ]
      if free:
        axes[max(free, key=lambda i: shape[i])] = name
  return PartitionSpec(*axes)


def state_sharding(state: Any, settings: Any, mesh: Mesh) -> Any:
  """Returns where each part of a training state lies.

  Args:
    state: shapes of the state; `state.params` follows the rules, and so does
      whatever ends in the path of a parameter and has its shape (moments,
      averages), or that of one for each part of `data` in front. Everything
      else is on every device.
    settings: the completed section `config.mesh`.
    mesh: of the run.
  """
  params = rules.by_path(state.params)
  own = tuple(settings.rules)
  rules.check(own, params, 'config.mesh.rules')
  for _, how in own:
    _check_rule(how)
  splits, of_optimizer = {}, {}
  for path, leaf in params.items():
    how = rules.first_match((*own, *RULES), path, 'replicate')
    split = functools.partial(
      _split, path, leaf.shape, mesh=mesh, smallest=settings.fsdp_minimum_mib
    )
    splits[path] = split(how)
    also = ' data' if settings.split_optimizer and 'data' not in how else ''
    of_optimizer[path] = split(f'{how}{also}')

  def place(path, leaf):
    parts = path.split('/')
    own = of_optimizer if parts[0] in _OF_OPTIMIZER else splits
    for start in range(len(parts)):
      name = '/'.join(parts[start:])
      if name not in splits:
        continue
      if leaf.shape == params[name].shape:
        return NamedSharding(mesh, own[name])
      if leaf.shape == (mesh.shape['data'], *params[name].shape):
        return NamedSharding(mesh, PartitionSpec('data', *splits[name]))
    return NamedSharding(mesh, PartitionSpec())

  return rules.map_by_path(place, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns how batches lie: examples over `data` and `fsdp`."""
  return NamedSharding(mesh, BATCH)


def batch_shards(mesh: Mesh) -> int:
  """Returns into how many parts the batch is split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def to_mesh(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Sends this process's part of a batch to its devices."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def in_batches(
  function: Callable[[Any], Any],
  examples: Sequence[Any],
  size: int,
  mesh: Mesh,
  prepare: Callable[[Sequence[Any]], Any] = np.asarray,
) -> Iterator[Any]:
  """Applies a compiled function to any number of examples, some at a time.

  Args:
    function: from a batch on the devices to arrays; in these, as in those of
      the batch, the first axis is that of the examples.
    examples: any number of them.
    size: of a batch, a multiple of `batch_shards`.
    mesh: that the batch is split over, of this process's devices alone; it is
      set while the function runs.
    prepare: from some examples, `size` or fewer, to arrays on the host.

  Yields:
    What the function returns for some examples, on the host.
  """
  sharding = batch_sharding(mesh)
  for start in range(0, len(examples), size):
    some = examples[start : start + size]
    # Of one shape, the last as well, so that it is compiled once: filled up by
    # its last example. Indexed, since NumPy cannot pad random keys.
    rows = np.minimum(np.arange(size), len(some) - 1)
    batch = jax.tree.map(operator.itemgetter(rows), prepare(some))
    with jax.set_mesh(mesh):
      found = jax.device_get(function(jax.device_put(batch, sharding)))
    yield jax.tree.map(operator.itemgetter(slice(len(some))), found)
