"""What many runs have reached, against what differs between them."""

import csv
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from vit_jax import config as config_lib
from vit_jax.analysis import compute
from vit_jax.analysis.pictures import Answer
from vit_jax.config import ConfigError, did_you_mean
from vit_jax.training import metrics, schema
from vit_jax.training import run as run_lib

# Values on an axis that are further apart are drawn by their logarithm.
_LOGARITHMIC = 8
# Values on such an axis that are as far apart have room for their numbers.
_APART = 1.7


@dataclasses.dataclass(frozen=True)
class Point:
  """One run.

  Attributes:
    run: its folder, below that of the study.
    line: what it is compared with others as.
    x: what was varied.
    value: of the metric, the last that was measured.
    step: that it is from.
  """

  run: str
  line: str
  x: Any
  value: float
  step: int


def collect(
  folder: pathlib.Path, x: str, line: str | None, metric: str
) -> list[Point]:
  """Reads all runs below a folder that have measured something.

  Args:
    folder: of the study.
    x: 'examples' (of the training set), 'exaflops' (of training, by
      arithmetic), or a key such as 'config.optimizer.learning_rate'.
    line: a key that tells lines apart, or None for the folder of each run.
    metric: such as 'test/accuracy'.

  Raises:
    ConfigError: there is no such run, or a run has no such key.
  """
  points = []
  for file in sorted(folder.glob('**/config.json')):
    run = file.parent.relative_to(folder)
    found = [row for row in metrics.read(file.parent) if metric in row]
    if not found:
      continue
    config = json.loads(file.read_text())
    points.append(
      Point(
        run=str(run),
        line=str(_value(config, line) if line else run.parent),
        x=_value(config, x),
        value=found[-1][metric],
        step=found[-1]['step'],
      )
    )
  if not points:
    raise ConfigError(f'No run below {folder} has measured {metric}.')
  if any(isinstance(point.x, str) for point in points):
    # Among words numbers are words, too: None and 0.1, for example.
    points = [dataclasses.replace(each, x=str(each.x)) for each in points]
  return sorted(points, key=lambda point: (point.line, point.x))


def _value(config: Mapping[str, Any], name: str) -> Any:
  """Returns what a run has of `x` or `line`, see `collect`."""
  if name in _COMPUTED:
    return _COMPUTED[name](_prepared(json.dumps(config)))
  found = config
  for key in name.removeprefix('config.').split('.'):
    if not isinstance(found, Mapping) or key not in found:
      known = (*_COMPUTED, *found) if isinstance(found, Mapping) else _COMPUTED
      raise ConfigError(f'A run has no {name!r}.{did_you_mean(key, known)}')
    found = found[key]
  return found if isinstance(found, int | float) else str(found)


@functools.cache
def _prepared(text: str) -> Any:
  config = config_lib.resolve(json.loads(text), (), schema.SCHEMA)
  return run_lib.prepare(config, planned=True)


def _exaflops(run: Any) -> float:
  images = run.total_steps * run.config.batch_size
  return compute.of_task(run.task).training_flops * images / 1e18


_COMPUTED: dict[str, Callable[[Any], float]] = {
  'examples': lambda run: run.inputs.train_examples,
  'exaflops': _exaflops,
}
_LABELS = {
  'examples': 'training examples',
  'exaflops': 'training compute',
}


def draw(points: Sequence[Point], x: str, metric: str) -> Figure:
  """Draws a dot for every run, and a line through those of each kind.

  What is a word in place of a number is ordered by its best value, and no line
  joins it.
  """
  figure = Figure(figsize=(6.5, 4), layout='constrained')
  axes = figure.subplots()
  lines = dict.fromkeys(point.line for point in points)
  values = [point.x for point in points if not isinstance(point.x, str)]
  if not values:
    best = sorted(points, key=lambda point: point.value)
    axes.xaxis.update_units([*{point.x: None for point in best}])
  for line, marker in zip(lines, itertools.cycle('osD^v')):
    chosen = [point for point in points if point.line == line]
    axes.plot(
      [point.x for point in chosen],
      [point.value for point in chosen],
      marker,
      linestyle='-' if values else '',
      label=line,
      alpha=0.8,
    )
  if values and max(values) >= _LOGARITHMIC * min(values) > 0:
    axes.set_xscale('log')
    different = np.unique(values)
    if (different[1:] >= _APART * different[:-1]).all():
      axes.set_xticks(different, [f'{x:,.6g}' for x in different])
    else:
      axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
  if x == 'exaflops':
    axes.xaxis.set_major_formatter(_in_flop)
  axes.set(xlabel=_LABELS.get(x, x.rpartition('.')[2]), ylabel=metric)
  axes.grid(alpha=0.3)
  if len(lines) > 1:
    figure.legend(loc='outside right upper')
  return figure


def _in_flop(exaflops: float, _: int) -> str:
  """Writes a value on an axis, such as '5 TFLOP' for 5e-6."""
  return ticker.EngFormatter('FLOP')(exaflops * 1e18)


def answer(points: Sequence[Point], x: str, metric: str) -> Answer:
  """Returns the picture, the numbers behind it, and how to read it."""
  label = _LABELS.get(x, x.removeprefix('config.'))
  return Answer(
    f'Each dot is one run, whose last {metric} stands against its {label}. '
    'Runs of one colour have something else in common, which differs between '
    'colours. A single run says little of small differences: how much another '
    'seed changes is not in the picture.',
    draw(points, x, metric),
    {
      name: np.array([getattr(point, name) for point in points])
      for name in ('run', 'line', 'x', 'value', 'step')
    },
  )


def write(path: pathlib.Path, points: Sequence[Point], metric: str) -> None:
  """Writes the table as CSV."""
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['run', 'line', 'x', metric, 'step'])
    writer.writerows(dataclasses.astuple(point) for point in points)


def show(points: Sequence[Point], x: str, metric: str) -> Table:
  """Returns the table for a terminal."""
  table = Table(box=box.SIMPLE)
  for name in ('line', x.rpartition('.')[2], metric, 'step'):
    table.add_column(name, overflow='fold')
  for point in points:
    where = f'{point.x:.4g}' if isinstance(point.x, float) else str(point.x)
    table.add_row(point.line, where, f'{point.value:.4f}', f'{point.step:,}')
  return table
