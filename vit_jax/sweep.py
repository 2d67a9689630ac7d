"""Trains one configuration with every combination of some values.

`python -m vit_jax.sweep --config=configs/digits.py --workdir=runs/sweep --set
config.optimizer.learning_rate=0.0003,0.001,0.003` prints a command for each.
`--run` runs them, one after the other, and shows what came out; `--table` shows
how far they are. Each has a workdir of its own, so what was stopped goes on,
and what is finished is not done again.
"""

import argparse
import csv
import io
import itertools
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from vit_jax import command_line, config
from vit_jax.config import ConfigError, did_you_mean
from vit_jax.training import (
  checks,
  loop,
  metrics,
  progress,
  report,
  schema,
  summary,
  whole_files,
)
from vit_jax.training.checkpoint import lower_is_better

_FINISHED = 'finished'
# The first of these that a run has measured is shown.
_METRICS = ('test/accuracy', 'test/loss', 'train/loss')


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints commands; with `--run` runs them; ends with a table."""
  known, overrides = command_line.split(_parser(), arguments)
  workdir = command_line.required(known.workdir)
  if known.config is None:
    _check_table_alone(known, overrides)
    names = sorted(path.parent.name for path in workdir.glob('*/config.json'))
    if not names:
      raise ConfigError(f'There is no run in the folders of {workdir}.')
    _show(workdir, names, {}, known.metric, console)
    return
  commands = {
    name: _command(known.config, (*overrides, *point), workdir / name)
    for name, point in _grid(known, overrides).items()
  }
  if not (known.run or known.table):
    for command in commands.values():
      text = shlex.join(command)
      console.print(text, soft_wrap=True, highlight=False, markup=False)
    return
  status = _run(commands, console) if known.run else {}
  _show(workdir, list(commands), status, known.metric, console)
  failed = [name for name, text in status.items() if text != _FINISHED]
  if failed:
    raise loop.TrainingError(
      f'{len(failed)} of {len(commands)} runs failed: {" ".join(failed)}'
    )


def _parser() -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, 'vit_jax.sweep')
  options.add_argument('--config', help='configuration: FILE.py[:VARIANT]')
  options.add_argument(
    '--set', action='append', default=[], metavar='config.KEY=VALUE,VALUE,...'
  )
  options.add_argument('--run', action='store_true', help='run the commands')
  options.add_argument(
    '--table', action='store_true', help='show results so far; run nothing'
  )
  options.add_argument('--metric', help='to show, such as test/accuracy')
  return options


def _check_table_alone(
  known: argparse.Namespace, overrides: Sequence[str]
) -> None:
  """Raises ConfigError if more than a table was asked for without a config."""
  if known.run or known.set or overrides or not known.table:
    raise ConfigError(
      '--config is missing: the configuration that the runs have in common. '
      'Only --table does without, and then shows every run in --workdir.'
    )


def _split_values(text: str) -> list[str]:
  """Splits at commas, but not within brackets or quotes."""
  values, start, depth, quote = [], 0, 0, ''
  for i, letter in enumerate(text):
    if quote or letter in '\'"':
      quote = '' if letter == quote else quote or letter
    elif letter in '([{)]}':
      depth += 1 if letter in '([{' else -1
    elif letter == ',' and not depth:
      values.append(text[start:i])
      start = i + 1
  return [*values, text[start:]]


def _grid(
  known: argparse.Namespace, overrides: Sequence[str]
) -> dict[str, list[str]]:
  """Returns the overrides of each point by its name; all of them are checked.

  Raises:
    ConfigError: a key or a value cannot work, or two points are the same.
  """
  if not known.set:
    raise ConfigError(
      '--set is missing: what to vary, such as '
      '--set config.optimizer.learning_rate=0.0003,0.001.'
    )
  axes = {}
  for argument in known.set:
    path, text = config.split_override(f'--{argument.removeprefix("--")}')
    if path in axes:
      raise ConfigError(f'config.{path} is set twice: give all values in one.')
    axes[path] = _split_values(text)
  base = config.load(known.config)
  points = {}
  for values in itertools.product(*axes.values()):
    point = dict(zip(axes, values))
    name = _name(point)
    if name in points:
      raise ConfigError(f'Two points of the sweep are called {name!r}.')
    points[name] = [f'--config.{path}={v}' for path, v in point.items()]
    resolved = config.resolve(base, [*overrides, *points[name]], schema.SCHEMA)
    checks.check_values(resolved)
  return points


def _name(point: dict[str, str]) -> str:
  """Returns a folder name such as 'learning_rate=0.01,weight_decay=0.1'."""
  lasts = [path.rpartition('.')[2] for path in point]
  short = lasts if len(set(lasts)) == len(lasts) else list(point)
  values = (
    re.sub(r'[^\w.+-]+', '-', text).strip('-') for text in point.values()
  )
  return ','.join(f'{key}={value}' for key, value in zip(short, values))


def _point(name: str) -> dict[str, str]:
  """Returns what the name of a run says: the inverse of `_name`."""
  if '=' not in name:
    return {'run': name}
  return dict(part.partition('=')[::2] for part in name.split(','))


def _command(
  file: str, overrides: Sequence[str], workdir: pathlib.Path
) -> list[str]:
  return [
    'python', '-m', 'vit_jax.train', f'--config={file}', *overrides,
    f'--workdir={workdir}',
  ]  # fmt: skip


def _run(commands: dict[str, list[str]], console: Console) -> dict[str, str]:
  """Runs commands one after the other; returns how each has ended.

  Asked to stop, it passes that on, waits until the run has saved, and ends.
  """
  status = {}
  with loop.stop_requests() as stop:
    for number, (name, command) in enumerate(commands.items(), 1):
      text = f'run {number} of {len(commands)}: {name}'
      console.print(text, highlight=False, markup=False)
      code = _wait([sys.executable, *command[1:]], stop)
      if stop():
        raise SystemExit(command_line.PREEMPTED)
      status[name] = _FINISHED if code == 0 else f'failed ({code})'
  return status


def _wait(command: Sequence[str], stop: Any) -> int:
  """Runs a command to its end; returns its exit code."""
  process = subprocess.Popen(command)
  told = False
  while True:
    try:
      return process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
      if stop() and not told:
        process.send_signal(signal.SIGTERM)
        told = True


def _result(workdir: pathlib.Path, metric: str) -> dict[str, Any]:
  """Returns what a run has reached so far."""
  if not (workdir / 'config.json').exists():
    return {'status': 'not started'}
  rows = metrics.read(workdir)
  finished = report.is_complete(workdir)
  result = {
    'status': _FINISHED if finished else 'not finished',
    'step': max((row['step'] for row in rows), default=0),
  }
  if found := [row for row in rows if metric in row]:
    best = min(found, key=lambda row: _sign(metric) * row[metric])
    result['last'] = found[-1][metric]
    result['best'] = best[metric]
    result['at'] = best['step']
  size = json.loads((workdir / 'config.json').read_text())['batch_size']
  result['seconds'] = round(summary.training_seconds(rows, size), 1)
  return result


def _sign(metric: str) -> int:
  """Returns 1 where lower is better, else -1."""
  return 1 if lower_is_better(metric) else -1


def _chosen_metric(
  workdir: pathlib.Path, names: Sequence[str], asked: str | None
) -> str:
  """Returns the metric to show; ConfigError if no run has what was asked."""
  known = {
    key
    for name in names
    for row in metrics.read(workdir / name)
    for key in row.keys() - {'step'}
  }
  if asked and known and asked not in known:
    raise ConfigError(
      f'No run has --metric={asked}.{did_you_mean(asked, known)}'
    )
  return asked or next((name for name in _METRICS if name in known), '')


def _show(
  workdir: pathlib.Path,
  names: Sequence[str],
  status: dict[str, str],
  asked: str | None,
  console: Console,
) -> None:
  """Prints a table of the runs and writes it to `sweep.csv`.

  Args:
    workdir: of the sweep.
    names: of the runs.
    status: of those that were run just now.
    asked: metric to show, if any was asked for.
    console: to print on.
  """
  metric = _chosen_metric(workdir, names, asked)
  rows = []
  for name in names:
    row = _point(name) | _result(workdir / name, metric)
    rows.append(row | ({'status': status[name]} if name in status else {}))
  varied = dict.fromkeys(key for name in names for key in _point(name))
  columns = [*varied, 'status', 'step', 'last', 'best', 'at', 'seconds']
  path = workdir / 'sweep.csv'
  workdir.mkdir(parents=True, exist_ok=True)
  text = io.StringIO(newline='')
  writer = csv.DictWriter(text, [*columns, 'metric'])
  writer.writeheader()
  writer.writerows({**row, 'metric': metric} for row in rows)
  whole_files.write(path, text.getvalue())
  # What folders are called may look like markup.
  console.print(_table(metric, columns, rows), markup=False)
  written = f'Written to {path}.'
  console.print(written, soft_wrap=True, highlight=False, markup=False)


def _table(
  metric: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> Table:
  """Returns the rows; the best of them is bold."""
  table = Table(title=metric, box=box.SIMPLE, title_justify='left')
  for column in columns:
    title = 'time' if column == 'seconds' else column
    table.add_column(title, overflow='fold')
  scores = [_sign(metric) * row['best'] for row in rows if 'best' in row]
  for row in rows:
    cells = [_cell(column, row.get(column, '')) for column in columns]
    is_best = 'best' in row and _sign(metric) * row['best'] == min(scores)
    table.add_row(*cells, style='bold' if is_best else '')
  return table


def _cell(column: str, value: Any) -> str:
  if column == 'seconds' and value != '':
    return progress.spelled(value)
  return f'{value:.4f}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
  command_line.run(main)
