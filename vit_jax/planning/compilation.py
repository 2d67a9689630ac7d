"""Compiling for a TPU that is not there, and remembering what came of it."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from typing import Any

import jax

from vit_jax.planning import program as program_lib
from vit_jax.planning.topologies import Topology

_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# Two ways in which the compiler says how much it would need.
_NEEDED = (
  re.compile(r'\(([0-9.]+)([KMGT])\) exceeds available HBM'),
  re.compile(r'Used ([0-9.]+)([KMGT]) of'),
)
# To be raised when what is remembered changes its meaning.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Result:
  """What the compiler made of a program, for each device.

  Attributes:
    fits: whether it fits the memory; if not, only `needed_bytes` is known.
    needed_bytes: of memory; None where the compiler does not say.
    memory: bytes by class, which add up to `needed_bytes`.
    peak_bytes: the most that is in use at once; less than all that is set
      aside where that cannot be laid out without gaps.
    program: see `vit_jax.planning.program.Program`.
    compiler_flops: by the compiler's count; None where there are loops, whose
      bodies it counts once.
    compiler_seconds: its own estimate; None where there are loops, or where it
      has no model of the hardware, which shows in negative times.
    wall_seconds: that compiling took.
    cpu_seconds: the same, over all cores.
  """

  fits: bool
  needed_bytes: int | None
  wall_seconds: float
  cpu_seconds: float
  memory: dict[str, int] = dataclasses.field(default_factory=dict)
  peak_bytes: int | None = None
  program: program_lib.Program | None = None
  compiler_flops: float | None = None
  compiler_seconds: float | None = None


def needed_bytes(message: str) -> int | None:
  """Returns the memory that a refusal speaks of; None if it does not."""
  for pattern in _NEEDED:
    if match := pattern.search(message):
      return round(float(match[1]) * _UNITS[match[2]])
  return None


def _memory(compiled: Any, program: program_lib.Program) -> dict[str, int]:
  """Splits the memory of a program into classes."""
  stats = compiled.memory_analysis()
  parts = {
    'parameters': 'state.params',
    'optimizer state': 'state.optimizer',
    'average of parameters': 'state.average',
    'compression of gradients': 'state.exchange',
    'other variables': 'state.others',
  }
  memory = {
    name: program.arguments[path]
    for name, path in parts.items()
    if path in program.arguments
  }
  memory['batch'] = sum(
    size for path, size in program.arguments.items() if path.startswith('batch')
  )
  # Next to nothing: the step and the random key.
  memory['others'] = stats.argument_size_in_bytes - sum(memory.values())
  # Donated arguments are where most outputs go.
  memory['others'] += stats.output_size_in_bytes - stats.alias_size_in_bytes
  memory['activations and temporaries'] = stats.temp_size_in_bytes
  memory['program'] = stats.generated_code_size_in_bytes
  return memory


def compile_for(lowered: Any) -> Result:
  """Compiles what was lowered for a topology's devices.

  Args:
    lowered: `jax.jit(...).lower(...)`.
  """
  wall, processor = time.perf_counter(), time.process_time()

  def spent():
    return time.perf_counter() - wall, time.process_time() - processor

  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return Result(False, needed_bytes(str(error)), *spent())
  taken = spent()
  program = program_lib.read(compiled.as_text())
  memory = _memory(compiled, program)
  cost = compiled.cost_analysis()
  seconds = cost.get('optimal_seconds', -1)
  return Result(
    True,
    sum(memory.values()),
    *taken,
    memory=memory,
    peak_bytes=compiled.memory_analysis().peak_memory_in_bytes,
    program=program,
    compiler_flops=None if program.loops else cost['flops'],
    compiler_seconds=None if program.loops or seconds <= 0 else seconds,
  )


def _key(lowered: Any, topology: Topology) -> str:
  """Returns a hash of everything that a result depends on."""
  versions = [
    importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'libtpu')
  ]
  said = [str(_VERSION), *versions, topology.name, lowered.as_text()]
  return hashlib.sha256('\0'.join(said).encode()).hexdigest()


def cache_folder() -> pathlib.Path:
  """Returns where results are remembered, for all runs of this user."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'vit_jax' / 'plan'


def _to_json(result: Result) -> str:
  return json.dumps(dataclasses.asdict(result))


def _from_json(text: str) -> Result:
  fields = json.loads(text)
  if fields['program']:
    collectives = {
      kind: program_lib.Traffic(**traffic)
      for kind, traffic in fields['program'].pop('collectives').items()
    }
    fields['program'] = program_lib.Program(
      collectives=collectives, **fields['program']
    )
  return Result(**fields)


def remembered(
  lowered: Any, topology: Topology, folder: pathlib.Path
) -> tuple[Result, bool]:
  """Compiles, unless the same program was compiled for the same TPU before.

  Args:
    lowered: see `compile_for`.
    topology: whose devices it was lowered for.
    folder: of what is remembered.

  Returns:
    The result, and whether it was remembered.
  """
  file = folder / f'{_key(lowered, topology)}.json'
  try:
    return _from_json(file.read_text()), True
  except (OSError, ValueError, TypeError, KeyError):
    pass  # Not there, or not whole.
  result = compile_for(lowered)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f'.{os.getpid()}')
    partial.write_text(_to_json(result))
    partial.replace(file)
  except OSError:
    pass  # It is only asked again.
  return result, False
