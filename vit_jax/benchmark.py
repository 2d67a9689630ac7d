"""Measures speed here: `python -m vit_jax.benchmark --config=F`.

`--what=step,inference,data` chooses what is measured.
"""

import json
import pathlib
import time
from collections.abc import Sequence

import jax
from rich.console import Console

from vit_jax import command_line, config
from vit_jax.training import run as run_lib
from vit_jax.training import schema, speed, summary


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints a table a measurement, and writes all of them as JSON."""
  started = time.perf_counter()
  options = command_line.parser(__doc__, 'vit_jax.benchmark')
  command_line.add_config(options)
  options.add_argument('--what', default=','.join(speed.MEASUREMENTS))
  options.add_argument('--repeats', type=int, default=20, help='timed calls')
  options.add_argument('--json', type=pathlib.Path, help='file to write')
  known, overrides = command_line.split(options, arguments)
  chosen = known.what.split(',')
  for name in chosen:
    if name not in speed.MEASUREMENTS:
      hint = config.did_you_mean(name, speed.MEASUREMENTS)
      raise config.ConfigError(f'--what={name} is not measured.{hint}')
  resolved = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  # Speed of step and inference does not need the data itself.
  run = run_lib.prepare(resolved, planned='data' not in chosen)
  kind = run.mesh.devices.flat[0].device_kind
  results = {
    'config': known.config,
    'device': f'{run.mesh.size} x {kind}',
    'start to ready, s': time.perf_counter() - started,
  }
  with jax.set_mesh(run.mesh):
    for name in chosen:
      results[name] = speed.MEASUREMENTS[name](run, known.repeats)
      console.print(
        summary.of_speed(f'{name} on {results["device"]}', results[name])
      )
  if known.json:
    known.json.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
  command_line.run(main)
