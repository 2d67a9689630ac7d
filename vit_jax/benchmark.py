"""Measures speed here: `python -m vit_jax.benchmark --config=F`.

`--what=step,inference,data` chooses what is measured.
"""

import time

# Before the imports below, which take seconds and are part of every start.
# Only what Python itself does before its first line is not counted.
_STARTED = time.perf_counter()

# ruff: noqa: E402
import json
import pathlib
from collections.abc import Sequence

import jax
from rich.console import Console

from vit_jax import command_line, config
from vit_jax.training import run as run_lib
from vit_jax.training import schema, speed, summary


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints a table a measurement, and writes all of them as JSON."""
  options = command_line.parser(__doc__, 'vit_jax.benchmark')
  command_line.add_config(options)
  options.add_argument(
    '--what',
    default=','.join(speed.MEASUREMENTS),
    help='of step, inference and data; all by default',
  )
  options.add_argument('--repeats', type=int, default=20, help='timed calls')
  options.add_argument('--json', type=pathlib.Path, help='file to write')
  known, overrides = command_line.split(options, arguments)
  chosen = _chosen(known.what)
  if known.repeats < 1:
    raise config.ConfigError(
      f'--repeats={known.repeats} measures nothing: use 1 or more.'
    )
  command_line.check_writable('--json', known.json)
  resolved = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  # Speed of step and inference does not need the data itself.
  run = run_lib.prepare(resolved, planned='data' not in chosen)
  if run.chosen:
    console.print(run.chosen, highlight=False, markup=False)
  kind = run.mesh.devices.flat[0].device_kind
  device = f'{run.mesh.size} x {kind}'
  results = {'config': known.config, 'device': device}
  with jax.set_mesh(run.mesh):
    for name in chosen:
      ready = time.perf_counter() - _STARTED
      results[name] = speed.MEASUREMENTS[name](run, known.repeats)
      if name == 'step':
        results[name]['start to first step, s'] = _to_first_step(
          ready, results[name]
        )
      console.print(summary.of_speed(f'{name} on {device}', results[name]))
  if known.json:
    known.json.write_text(json.dumps(results, indent=2) + '\n')
    console.print(f'Written to {known.json}.', highlight=False, markup=False)


def _chosen(what: str) -> list[str]:
  """Returns what to measure, the step first: its start is timed as well."""
  names = what.split(',')
  for name in names:
    if name not in speed.MEASUREMENTS:
      hint = config.did_you_mean(name, speed.MEASUREMENTS)
      raise config.ConfigError(f'--what={name} is not measured.{hint}')
  return [name for name in speed.MEASUREMENTS if name in names]


def _to_first_step(ready: float, step: dict[str, float]) -> float:
  """Returns seconds from the start of the program to the first step's end.

  Imports, checks, initialisation and compilation included, not the reading of
  the first batch, which training does meanwhile.
  """
  return ready + step['initialisation, s'] + step['first step, s']


if __name__ == '__main__':
  command_line.run(main)
