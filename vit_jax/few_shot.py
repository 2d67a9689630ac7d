"""Scores features by a few examples: `python -m vit_jax.few_shot --workdir=D`.

Prints how well a linear classifier, fitted to 1, 5, 10 and 25 training
examples of each class, does on the test examples: mean and standard deviation
over several choices of examples. `--checkpoint=FILE` scores a released
checkpoint in place of a run.
"""

import argparse
import ast
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.evaluation import few_shot
from vit_jax.training import few_shot_inputs, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints a table, or JSON."""
  known, overrides = command_line.split(_parser(), arguments)
  model = command_line.open_model(known, overrides)
  trained.fit_batches(model)
  settings = few_shot_inputs.settings(
    model.config.eval.few_shot, **_given(known)
  )
  # Nothing but JSON goes where JSON is expected.
  notes = command_line.make_console(stderr=True) if known.json else console
  variables = {'trained': model.variables}
  if known.random:
    variables['random'] = trained.fresh_variables(model)
  measure = few_shot_inputs.make_measure(
    model, settings, command_line.tell_broken(notes)
  )
  with jax.set_mesh(model.mesh):
    results = {name: measure(tree) for name, tree in variables.items()}
  if known.json:
    print(json.dumps({'step': model.step, **_as_json(results)}))
    return
  console.print(_table(model.step, settings, results))


def _parser() -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, 'vit_jax.few_shot')
  command_line.add_model(options)
  options.add_argument('--shots', help='such as 1,5,10,25 (the default)')
  options.add_argument('--seeds', help='choices of examples; 3 by default')
  options.add_argument(
    '--feature', help="'pooled' by default; 'blocks/block_03/output', ..."
  )
  options.add_argument(
    '--l2', help='regularisation, 1024 by default; of several, the best'
  )
  options.add_argument('--source', help="data, such as 'folder:DIR'")
  options.add_argument('--train-split', help='where examples are chosen')
  options.add_argument('--test-split', help='what is classified')
  options.add_argument('--preprocess', help='of both')
  options.add_argument(
    '--random', action='store_true', help='also score fresh parameters'
  )
  options.add_argument('--json', action='store_true', help='print JSON')
  return options


def _given(known: argparse.Namespace) -> dict[str, Any]:
  """Returns the settings that the command gives, None where it does not."""
  given = {}
  for field in dataclasses.fields(few_shot.Settings):
    text = getattr(known, field.name)
    if text is not None and field.type is not str:
      text = _numbers(field.name, text, field.type)
    given[field.name] = text
  return given


def _numbers(name: str, text: str, kind: type) -> Any:
  """Reads '5', or for tuples '1,5,10'."""
  try:
    value = ast.literal_eval(f'({text},)' if kind is tuple else text)
  except (ValueError, SyntaxError):
    value = None
  if not isinstance(value, kind):
    expected = 'numbers, as in 1,5,10' if kind is tuple else 'a whole number'
    raise ConfigError(
      f'--{name}={text} is not understood: expected {expected}.'
    )
  return value


def _as_json(results: dict[str, list[few_shot.Result]]) -> dict[str, Any]:
  return {
    name: [
      {'shots': r.shots, 'l2': r.l2, 'accuracies': r.accuracies} for r in rows
    ]
    for name, rows in results.items()
  }


def _table(
  step: int,
  settings: few_shot.Settings,
  results: dict[str, list[few_shot.Result]],
) -> Table:
  """Returns a row for each number of shots."""
  title = f'{settings.feature} of step {step:,}, {settings.seeds} choices'
  table = Table(title=title, box=box.SIMPLE, title_justify='left')
  table.add_column('shots', justify='right')
  for name in results:
    table.add_column(f'accuracy, {name}')
    if len(settings.l2) > 1:
      table.add_column('l2', justify='right')
  for rows in zip(*results.values()):
    cells = [str(rows[0].shots)]
    for result in rows:
      spread = f' +- {result.spread:.4f}' if settings.seeds > 1 else ''
      cells.append(f'{result.mean:.4f}{spread}')
      if len(settings.l2) > 1:
        cells.append(f'{result.l2:g}')
    table.add_row(*cells)
  return table


if __name__ == '__main__':
  command_line.run(main)
