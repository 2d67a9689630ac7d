"""Several processes as one program: how they find each other and agree.

Every process runs the same program on its own devices. Only the first writes
what a run leaves beside its checkpoints, and prints.
"""

import collections
import glob
import importlib.util
import io
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from vit_jax.config import ConfigError

# How long a process may be silent before the others give it up and end.
_SILENCE_SECONDS = 30
# Answers that are waited for later, so that devices never wait for the host.
_BEHIND = 2
_VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_PROCESS_COUNT', 'JAX_PROCESS_ID')


def start(patience: int = 300) -> None:
  """Joins the other processes of this run, if there are any.

  On a Cloud TPU VM and under Slurm they are found without being told.
  Elsewhere the environment names them: JAX_COORDINATOR_ADDRESS (host:port of
  the first process), JAX_PROCESS_COUNT and JAX_PROCESS_ID (from 0).

  Args:
    patience: seconds that a process that is done waits for the others.

  Raises:
    ConfigError: the environment names them only in part.
  """
  given = {name: os.environ.get(name) for name in _VARIABLES}
  if any(given.values()):
    address, count, index = given.values()
    if not (
      address and (count or '').isdecimal() and (index or '').isdecimal()
    ):
      raise ConfigError(
        'The environment describes several processes, but not wholly: '
        + ', '.join(f'{name}={value!r}' for name, value in given.items())
        + '. Give all three, such as localhost:1234, 2 and 0, or none.'
      )
    jax.distributed.initialize(
      address,
      int(count),
      int(index),
      heartbeat_timeout_seconds=_SILENCE_SECONDS,
      shutdown_timeout_seconds=patience,
    )
  elif _on_tpu_vm() or int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
    jax.distributed.initialize(
      heartbeat_timeout_seconds=_SILENCE_SECONDS,
      shutdown_timeout_seconds=patience,
    )


def _on_tpu_vm() -> bool:
  """Whether this machine has TPU chips that JAX will use."""
  chips = glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')
  wanted = os.environ.get('JAX_PLATFORMS', 'tpu')
  return bool(chips and 'tpu' in wanted and importlib.util.find_spec('libtpu'))


def first() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def console(own: Console) -> Console:
  """Returns where this process prints: nowhere, but for the first."""
  return own if first() else Console(file=io.StringIO())


class Agreement:
  """A question that all processes answer together: does any say yes?

  Each process asks equally often. The answer is that of an earlier call, the
  same for all, so that they act at the same moment.

  Args:
    mesh: of the run.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._answers = collections.deque()

  def __call__(self, yes: bool) -> bool:
    """Returns whether any process said yes; alone, this one's answer."""
    if jax.process_count() == 1:
      return yes
    votes = np.full(jax.local_device_count(), yes)
    votes = jax.make_array_from_process_local_data(self._sharding, votes)
    self._answers.append(_any(votes))
    if len(self._answers) <= _BEHIND:
      return False
    return bool(self._answers.popleft())


@jax.jit
def _any(votes: jax.Array) -> jax.Array:
  return jnp.any(votes)
