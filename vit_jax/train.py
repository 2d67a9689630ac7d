"""Trains: `python -m vit_jax.train --config=configs/digits.py --workdir=D`.

Starting it again goes on from the newest checkpoint in the workdir.
"""

from collections.abc import Sequence

from rich.console import Console

from vit_jax import command_line, config
from vit_jax.training import loop, processes, schema, summary
from vit_jax.training import run as run_lib


def main(arguments: Sequence[str], console: Console) -> None:
  """Trains, or with `--check` only says what would be done."""
  options = command_line.parser(__doc__, 'vit_jax.train')
  command_line.add_config(options)
  options.add_argument(
    '--check', action='store_true', help='print the plan of the run and stop'
  )
  options.add_argument(
    '--profile',
    metavar='STEP:COUNT',
    help='trace so many steps into WORKDIR/profile, for xprof',
  )
  known, overrides = command_line.split(options, arguments)
  processes.start()
  resolved = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  run = run_lib.prepare(resolved, planned=known.check)
  if run.chosen:
    processes.console(console).print(run.chosen, highlight=False, markup=False)
  if known.check:
    console.print(summary.of_plan(run))
    return
  workdir = command_line.required(known.workdir)
  loop.train(run, workdir, console, known.profile)


if __name__ == '__main__':
  command_line.run(main)
