"""From what the compiler said to what a run takes: memory, time, core-days."""

import dataclasses
import math
import pathlib
from typing import Any

import jax

from vit_jax.planning import compilation
from vit_jax.planning.topologies import Topology
from vit_jax.training import flops

# How often the bytes of a collective pass a device's links, at least.
_PASSES = {'all-reduce': 2}


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step of training, or of inference, on some TPUs.

  Attributes:
    mesh: devices along each axis.
    images: that one step takes, over all devices.
    steps: of the whole run.
    model_flops: that the model asks of one step, over all devices.
    executed_flops: the same and what is computed again.
    remembered: whether it was compiled earlier.
    accumulate: micro-batches of a step.
    chosen: what followed from the memory of a device; '' if nothing did.
  """

  topology: Topology
  mesh: dict[str, int]
  images: int
  steps: int
  model_flops: int
  executed_flops: int
  result: compilation.Result
  remembered: bool
  accumulate: int = 1
  chosen: str = ''

  @property
  def devices(self) -> int:
    """Devices that take part."""
    return math.prod(self.mesh.values())

  @property
  def cycles_seconds(self) -> float | None:
    """Time of a step by the compiler's cycles; None if the clock is unknown."""
    clock = self.topology.kind.clock_mhz
    return clock and self.result.program.cycles / (clock * 1e6)

  @property
  def links_seconds(self) -> float:
    """Time that a device's links are busy, at their full speed."""
    sent = sum(
      _PASSES.get(kind, 1) * traffic.bytes
      for kind, traffic in self.result.program.collectives.items()
    )
    return sent / self.topology.kind.links_bytes_per_s

  @property
  def roofline(self) -> dict[str, float]:
    """Time of a step if all that it needed were one thing, at its peak."""
    kind, program = self.topology.kind, self.result.program
    return {
      'arithmetic': self.executed_flops / self.devices / kind.peak_flops,
      'memory': program.hbm_bytes / kind.hbm_bytes_per_s,
      'links': self.links_seconds,
    }

  @property
  def seconds(self) -> float:
    """Time of a step, as well as it is known."""
    if self.cycles_seconds is not None:
      return self.cycles_seconds + self.links_seconds
    at_best = max(self.roofline.values())
    return max(self.result.compiler_seconds or 0, at_best)

  @property
  def utilisation(self) -> float:
    """Share of the peak FLOP/s that the model itself gets (MFU)."""
    peak = self.topology.kind.peak_flops * self.devices
    return self.model_flops / self.seconds / peak

  @property
  def images_per_s(self) -> float:
    """Images a second on one device."""
    return self.images / self.seconds / self.devices

  @property
  def run_seconds(self) -> float:
    """Time of all steps, without reading, evaluating and saving."""
    return self.steps * self.seconds

  @property
  def device_days(self) -> float:
    """Days of the whole run times devices: cores of v2 and v3, else chips."""
    return self.run_seconds * self.devices / 86_400

  def to_json(self) -> dict[str, Any]:
    """Returns every figure with its unit in its name."""
    said = {
      'topology': self.topology.name,
      'device': self.topology.device,
      'devices': self.devices,
      'mesh': self.mesh,
      'images_per_step': self.images,
      'micro_batches': self.accumulate,
      'chosen': self.chosen,
      'steps': self.steps,
      'fits': self.result.fits,
      'needed_bytes': self.result.needed_bytes,
      'memory_bytes': self.topology.kind.hbm_gib * 2**30,
      'memory': self.result.memory,
      'peak_bytes': self.result.peak_bytes,
      'model_flops_per_step': self.model_flops,
      'executed_flops_per_step': self.executed_flops,
      'compiler_wall_s': self.result.wall_seconds,
      'compiler_cpu_s': self.result.cpu_seconds,
    }
    if not self.result.fits:
      return said
    return {
      **said,
      'compiler_flops_per_device': self.result.compiler_flops,
      'hbm_bytes_per_step': self.result.program.hbm_bytes,
      'collectives': {
        kind: dataclasses.asdict(traffic)
        for kind, traffic in self.result.program.collectives.items()
      },
      'cycles': self.result.program.cycles,
      'cycles_s': self.cycles_seconds,
      'compiler_s': self.result.compiler_seconds,
      'roofline_s': self.roofline,
      'step_s': self.seconds,
      'utilisation': self.utilisation,
      'images_per_s_per_device': self.images_per_s,
      'run_s': self.run_seconds,
      'device_days': self.device_days,
    }


def of_run(run: Any, topology: Topology, folder: pathlib.Path) -> Plan:
  """Compiles the training step of a run.

  Args:
    run: prepared for the devices of the topology, see
      `vit_jax.training.run.prepare`.
    topology: that has these devices.
    folder: where results are remembered.
  """
  with jax.set_mesh(run.mesh):
    lowered = run.train_step.lower(run.state, run.batch)
    executed = flops.count_flops(run.train_step, run.state, run.batch)
  result, remembered = compilation.remembered(lowered, topology, folder)
  images = run.config.batch_size
  return Plan(
    topology=topology,
    mesh=dict(run.mesh.shape),
    images=images,
    steps=run.total_steps,
    model_flops=images * flops.training_flops(run.task),
    executed_flops=executed,
    result=result,
    remembered=remembered,
    accumulate=run.config.optimizer.accumulate,
    chosen=run.chosen,
  )
