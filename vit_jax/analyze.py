"""Looks inside: `python -m vit_jax.analyze WHAT ...`.

WHAT is one of

  compute   parameters, FLOPs and accelerator time of a configuration, from
            `--config=F`; `--utilisation` is the share of the peak reached
"""

import json
import pathlib
from collections.abc import Callable, Sequence

from rich.console import Console

from vit_jax import command_line, config
from vit_jax.analysis import compute
from vit_jax.training import run as run_lib
from vit_jax.training import schema


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints what the first argument asks for."""
  what, *others = arguments or ('--help',)
  if what in ('-h', '--help'):
    console.print(__doc__, highlight=False, markup=False, end='')
  elif what in WHATS:
    WHATS[what](others, console)
  else:
    raise config.ConfigError(
      f'{what!r} cannot be analysed.{config.did_you_mean(what, WHATS)}'
    )


def _compute(arguments: Sequence[str], console: Console) -> None:
  options = command_line.parser(compute.__doc__, 'vit_jax.analyze compute')
  command_line.add_config(options)
  options.add_argument(
    '--utilisation',
    type=float,
    default=0.4,
    help='share of the peak FLOP/s that is reached (MFU); 0.4 by default',
  )
  options.add_argument('--json', type=pathlib.Path, help='file to write')
  known, overrides = command_line.split(options, arguments)
  resolved = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  run = run_lib.prepare(resolved, planned=True)
  cost = compute.of_run(run, known.utilisation)
  console.print(compute.show(known.config, cost))
  if known.json:
    known.json.write_text(
      json.dumps({'config': known.config, **cost}, indent=2) + '\n'
    )
    console.print(f'Written to {known.json}.', highlight=False, markup=False)


WHATS: dict[str, Callable[[Sequence[str], Console], None]] = {
  'compute': _compute,
}

if __name__ == '__main__':
  command_line.run(main)
