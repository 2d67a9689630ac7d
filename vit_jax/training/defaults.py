"""What a configuration leaves open: mesh, micro-batches, rematerialisation.

`config.mesh.fsdp` and `config.optimizer.accumulate` are None, and the model's
`remat` is 'auto', where they are to follow from the model's size and the memory
of a device. The estimate takes two traces and no compilation; its factors come
from plans of `vit_jax.plan` for a TPU v3 (ViT-B/16, L/16 and H/14, bfloat16).

Where a sigmoid loss has no `config.model.initial_bias`, that follows from the
batch.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vit_jax.config import ConfigError
from vit_jax.models.transformer import REMAT
from vit_jax.tasks import contrastive_loss
from vit_jax.training import memory
from vit_jax.training import mesh as mesh_lib

# What a program keeps of what differentiation asks for, at most. Of unrolled
# layers most is fused into what needs it (0.41 to 0.57 are kept). A loop stacks
# all of it, in tiles that are filled up (1.36 to 1.59).
_KEPT = {'none': 0.57, 'names': 0.3, 'full': 0.2}
_KEPT_BY_SCAN = {'none': 1.6, 'names': 0.25, 'full': 0.15}

# Shares of the memory. A device keeps a whole state and its gradients if they
# take no more than WHOLE; else they are split until they take no more than
# SPLIT. With activations above ACTIVATIONS a step is slower than in two parts
# (B/16, 128 images a v3 core: by 17 %), but not as slow as with things computed
# again. What is above FULL is for what an estimate misses.
_WHOLE, _SPLIT, _ACTIVATIONS, _FULL = 0.5, 0.25, 0.5, 0.85
# Smaller micro-batches cost more than computing things again, where there are
# parameters to gather for each.
_FEWEST = 4

# Keys of the configuration, by the fields of Choice.
_NAMES = {
  'fsdp': 'mesh.fsdp',
  'accumulate': 'optimizer.accumulate',
  'remat': 'remat',
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Values for what was left open; None where it is still to be chosen."""

  fsdp: int | None = None
  accumulate: int | None = None
  remat: str | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Memory of one device with a choice, in bytes."""

  state: int
  activations: int
  others: int

  @property
  def bytes(self) -> int:
    """All of it."""
    return self.state + self.activations + self.others


def estimate(needs: memory.Needs, choice: Choice, examples: int) -> Estimate:
  """Returns the memory of a step.

  Args:
    needs: of the model and its optimizer.
    choice: complete.
    examples: of one step on one device.
  """
  kept = _KEPT_BY_SCAN if needs.scan else _KEPT
  in_part = -(-examples // choice.accumulate)
  # One tree of gradients is added up while the next one is computed.
  gradients = needs.gradients[choice.fsdp] * (1 + (choice.accumulate > 1))
  # A loop gathers those of one layer after the other (by plans of DALL-E).
  weights = 0 if needs.scan and choice.fsdp > 1 else needs.weights
  return Estimate(
    state=needs.state[choice.fsdp],
    activations=int(in_part * needs.example * kept[choice.remat]),
    others=gradients + weights,
  )


def choose(
  needs: memory.Needs, examples: int, available: float, said: Choice
) -> tuple[Choice, Estimate]:
  """Returns the choice that should be fastest of those that should fit.

  Fewest parts come first: then micro-batches are tried before anything is
  computed again, because they cost next to nothing. If nothing should fit, what
  needs least.

  Args:
    needs: of the model and its optimizer.
    examples: of one step on one device.
    available: memory of one device, in bytes.
    said: what the configuration says already.
  """
  fsdp = said.fsdp or _fsdp(needs, available)
  counts = [said.accumulate or 1]
  if said.accumulate is None and needs.parts:
    counts = [n for n in range(1, examples + 1) if examples % n == 0]
  remats = [said.remat] if said.remat else ['none', 'names', 'full']
  fewest = min(_FEWEST, examples)
  usual = [n for n in counts if examples // n >= fewest] or counts[:1]
  tries = [
    *itertools.product([_ACTIVATIONS, _FULL], remats[:1], usual),
    *itertools.product([_FULL], remats[1:], usual),
    *itertools.product([_FULL], remats[-1:], counts),
  ]
  for share, remat, accumulate in tries:
    choice = Choice(fsdp, accumulate, remat)
    found = estimate(needs, choice, examples)
    if (
      found.bytes <= _FULL * available
      and found.activations <= share * available
    ):
      break
  return choice, found


def _fsdp(needs: memory.Needs, available: float) -> int:
  """Returns over how many devices the state is split."""

  def share(fsdp):
    return (needs.state[fsdp] + 2 * needs.gradients[fsdp]) / available

  if share(1) <= _WHOLE:
    return 1
  sizes = sorted(needs.state)
  return next((size for size in sizes if share(size) <= _SPLIT), sizes[-1])


def sentence(
  choice: Choice, found: Estimate, said: Choice, available: float
) -> str:
  """Returns what was chosen and why, as one line; '' if nothing was."""
  chosen = [
    f'{name}={getattr(choice, field)}'
    for field, name in _NAMES.items()
    if getattr(said, field) is None
  ]
  if not chosen:
    return ''
  gib = [
    f'{size / 2**30:.1f}'
    for size in (
      found.bytes, available, found.state, found.activations, found.others,
    )
  ]  # fmt: skip
  verdict = 'about' if found.bytes <= available else 'which may not fit: about'
  return (
    f'Chosen: {", ".join(chosen)}; {verdict} {gib[0]} of {gib[1]} GiB a device '
    f'(state {gib[2]}, activations {gib[3]}, gradients and weights {gib[4]}).'
  )


def settle(
  config: ConfigDict,
  devices: Sequence[Any] | None,
  make_task: Callable[[ConfigDict], Any],
) -> tuple[ConfigDict, str]:
  """Fills in what a configuration leaves open.

  Where the memory of the devices is not known, that is one part of everything
  and nothing computed again.

  Args:
    config: complete, see `vit_jax.config.resolve`.
    devices: to run on; all there are by default.
    make_task: returns the task of a configuration.

  Returns:
    The configuration without anything open, and a line that says what was
    chosen and why; '' if nothing was.

  Raises:
    ConfigError: the mesh, the model or the task cannot work.
  """
  config = _with_bias(config)
  devices = list(devices or jax.devices())
  gib = memory.GIB.get(devices[0].device_kind)
  mesh = mesh_lib.make(config.mesh, devices)
  said = _said(config, mesh)
  nothing = Choice(1, 1, 'none')
  if gib is None or None not in dataclasses.astuple(said):
    return _filled(config, nothing), ''
  plain = _filled(config, nothing, (*REMAT, 'auto'))
  needs = memory.measure(plain, devices, make_task(plain))
  examples = max(1, config.batch_size // mesh_lib.batch_shards(mesh))
  choice, found = choose(needs, examples, gib * 2**30, said)
  line = sentence(choice, found, said, gib * 2**30)
  return _filled(config, choice), line


def _with_bias(config: ConfigDict) -> ConfigDict:
  """Returns a configuration whose sigmoid loss starts with a known bias."""
  sigmoid = config.task.get('loss_function') == 'sigmoid'
  if not sigmoid or config.model.get('initial_bias', 0.0) is not None:
    return config
  filled = config.to_dict()
  try:
    bias = contrastive_loss.initial_bias(config.batch_size)
  except ValueError as error:
    raise ConfigError(f'config.model.initial_bias: {error}.') from error
  filled['model']['initial_bias'] = bias
  return ConfigDict(filled).lock()


def _said(config: ConfigDict, mesh: Mesh) -> Choice:
  remats = set(memory.values(config.model, 'remat'))
  is_open = config.mesh.fsdp is None and config.mesh.data == -1
  return Choice(
    None if is_open else mesh.shape['fsdp'],
    config.optimizer.accumulate,
    None if 'auto' in remats else max(remats, default='none'),
  )


def _filled(
  config: ConfigDict, choice: Choice, remats: Sequence[str] = ('auto',)
) -> ConfigDict:
  """Returns a configuration with a choice where it says nothing.

  Args:
    config: complete.
    choice: complete.
    remats: of a model, which are replaced.
  """

  def with_remat(section):
    return {
      key: with_remat(value)
      if isinstance(value, dict)
      else choice.remat
      if key == 'remat' and value in remats
      else value
      for key, value in section.items()
    }

  filled = config.to_dict()
  filled['model'] = with_remat(filled['model'])
  for section, key in (('mesh', 'fsdp'), ('optimizer', 'accumulate')):
    if filled[section][key] is None:
      filled[section][key] = getattr(choice, key)
  return ConfigDict(filled).lock()
