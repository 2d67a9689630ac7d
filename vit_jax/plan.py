"""Plans a TPU run without a TPU: `python -m vit_jax.plan --config=F`.

Compiles the very step that training runs for `--topology`, such as v3-8, and
prints whether it fits, what it does and how long it takes. If it does not fit,
it prints what would make it fit.
"""

import argparse
import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vit_jax import command_line, config
from vit_jax.planning import (
  compilation,
  inference,
  tables,
  topologies,
  variations,
)
from vit_jax.training import run as run_lib
from vit_jax.training import schema

# Takes options, overrides and a console; prints, and returns what is written.
Mode = Callable[[argparse.Namespace, Sequence[str], Console], Any]

# What a sweep over topologies tries, if it is not told.
_TOPOLOGIES = 'v2-8,v3-8,v3-32,v4-8,v5litepod-8,v5p-8,v6e-8'


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints a plan, or several beside each other."""
  options = command_line.parser(__doc__, 'vit_jax.plan')
  options.add_argument('--config', help='FILE.py or FILE.py:VARIANT')
  options.add_argument(
    '--compare', help='configurations to plan beside each other: A.py,B.py:L/16'
  )
  options.add_argument(
    '--topology',
    help='such as v3-8, the default; several, with commas, for its sweep',
  )
  options.add_argument(
    '--sweep',
    help='batch: largest that fits; topology; resolution, with --inference',
  )
  options.add_argument(
    '--inference', action='store_true', help='predictions in place of training'
  )
  options.add_argument('--json', type=pathlib.Path, help='file to write')
  options.add_argument(
    '--plot', type=pathlib.Path, help='PNG to write, of --sweep=resolution'
  )
  known, overrides = command_line.split(options, arguments)
  make = _mode(known)
  command_line.check_writable('--json', known.json)
  command_line.check_writable('--plot', known.plot)
  written = make(known, overrides, console)
  if known.json:
    known.json.write_text(json.dumps(written, indent=2) + '\n')
    console.print(f'Written to {known.json}.', highlight=False, markup=False)


def _mode(known: argparse.Namespace) -> Mode:
  """Returns what was asked for; ConfigError for what does not go together."""
  if known.sweep and known.sweep not in _SWEEPS:
    hint = config.did_you_mean(known.sweep, _SWEEPS)
    raise config.ConfigError(f'--sweep={known.sweep} is not known.{hint}')
  if bool(known.config) == bool(known.compare):
    raise config.ConfigError(
      'Give one of --config and --compare: what to plan, such as '
      '--config=configs/vit_imagenet.py:B/16.'
    )
  if known.compare and known.sweep:
    raise config.ConfigError('--compare and --sweep do not go together.')
  if known.inference != (known.sweep == 'resolution'):
    raise config.ConfigError(
      '--inference and --sweep=resolution go together: give both or neither.'
    )
  if known.plot and known.sweep != 'resolution':
    raise config.ConfigError('--plot draws --sweep=resolution only.')
  if known.compare:
    return _compare
  return _SWEEPS[known.sweep] if known.sweep else _one


@contextlib.contextmanager
def _waiting(console: Console, what: str) -> Iterator[None]:
  """Shows what is being compiled, and for how long already."""
  if not console.is_terminal:
    console.print(f'compiling {what}', highlight=False, markup=False)
    yield
    return
  columns = SpinnerColumn(), TextColumn('{task.description}', markup=False)
  bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
  with bar:
    bar.add_task(f'compiling {what}', total=None)
    yield


def _planner(
  name: str, overrides: Sequence[str], console: Console
) -> tuple[Any, variations.Planner]:
  """Returns a complete configuration, and what plans its variations."""
  resolved = config.resolve(config.load(name), overrides, schema.SCHEMA)
  return resolved, variations.planner(
    resolved,
    name,
    compilation.cache_folder(),
    lambda what: _waiting(console, what),
  )


def _topology(known: argparse.Namespace) -> topologies.Topology:
  return topologies.parse(known.topology or 'v3-8')


def _one(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> dict:
  resolved, plan_with = _planner(known.config, overrides, console)
  plan = plan_with(_topology(known), ())
  console.print(tables.of_plan(known.config, plan), highlight=False)
  written = {'config': known.config, **plan.to_json()}
  if plan.result.fits:
    return written
  changes, fitting = variations.first_that_fits(resolved, plan, plan_with)
  title = '\n'.join(['\nIt fits with', *changes])
  console.print(tables.of_plan(title, fitting), highlight=False)
  return {**written, 'fits_with': {'overrides': changes, **fitting.to_json()}}


def _compare(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> list:
  topology, plans = _topology(known), []
  # Variants may have commas of their own.
  for name in re.split(r',(?=[^,]*\.py)', known.compare):
    _, plan_with = _planner(name, overrides, console)
    plans.append((name, plan_with(topology, ())))
  return _side_by_side(f'{topology}', plans, console)


def _side_by_side(
  title: str, plans: Sequence[variations.Named], console: Console
) -> list[dict]:
  console.print(tables.of_plans(title, plans), highlight=False)
  for name, plan in plans:
    if plan.chosen:
      what = name or f'{plan.images:,} images'
      console.print(f'{what}: {plan.chosen}', highlight=False, markup=False)
  return [{'name': name, **plan.to_json()} for name, plan in plans]


def _batches(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> list:
  _, plan_with = _planner(known.config, overrides, console)
  topology = _topology(known)
  plans = variations.over_batches(topology, plan_with)
  most = max(plan.images for _, plan in plans if plan.result.fits)
  found = _side_by_side(f'{known.config} on {topology}', plans, console)
  console.print(
    f'Largest batch: {most:,} images, {most // topology.size:,} a '
    f'{topology.device}.',
    highlight=False,
  )
  return found


def _topologies(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> list:
  _, plan_with = _planner(known.config, overrides, console)
  names = (known.topology or _TOPOLOGIES).split(',')
  plans, refused = variations.over_topologies(names, plan_with)
  found = _side_by_side(known.config, plans, console)
  for _, plan in plans:
    console.print(str(plan.topology), highlight=False)
  for message in refused:
    console.print(message, highlight=False, markup=False)
  return found


def _resolutions(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> list:
  resolved = config.resolve(config.load(known.config), overrides, schema.SCHEMA)
  topology = _topology(known)
  run = run_lib.prepare(resolved, topologies.devices(topology), planned=True)
  inference.check(run.task)
  found = inference.over_resolutions(
    run.task,
    topology,
    compilation.cache_folder(),
    lambda what: _waiting(console, what),
  )
  title = (
    f'{known.config}: predictions on one {topology.device} of {topology.name}'
  )
  console.print(inference.show(title, found), highlight=False)
  if known.plot:
    inference.draw(title, found).savefig(known.plot)
    console.print(f'Drawn as {known.plot}.', highlight=False, markup=False)
  return inference.to_json(found)


_SWEEPS = {
  'batch': _batches,
  'resolution': _resolutions,
  'topology': _topologies,
}

if __name__ == '__main__':
  # Compiling is the CPU's work, whatever accelerator there is.
  jax.config.update('jax_platforms', 'cpu')
  command_line.run(main)
