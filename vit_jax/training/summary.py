"""A run in tables that fit a terminal: before it, and after it."""

import pathlib
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table

from vit_jax.models.vit import count_parameters
from vit_jax.training import flops, metrics, progress, rules, texts
from vit_jax.training import optimizer as optimizer_lib


def _table(title: str) -> Table:
  table = Table(
    title=title, box=box.SIMPLE, title_justify='left', show_header=False
  )
  table.add_column(style='bold', no_wrap=True)
  table.add_column(overflow='fold')
  return table


def _bytes(tree: Any) -> int:
  return sum(
    int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _bytes_per_device(tree: Any) -> int:
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _sharding(run: Any) -> str:
  split = {
    path: leaf.sharding.spec
    for path, leaf in rules.by_path(run.state.params).items()
    if any(leaf.sharding.spec)
  }
  whole = len(jax.tree.leaves(run.state.params)) - len(split)
  lines = [f'{path} {spec}' for path, spec in list(split.items())[:3]]
  if len(split) > 3:
    lines.append(f'... and {len(split) - 3} more are split')
  lines.append(f'{whole} parameters are whole on every device')
  return '\n'.join(lines)


def _weight_decay(optimizer: Any) -> str:
  decay = optimizer_lib.decay_times_learning_rate(optimizer)
  return (
    f'{decay:g} times the learning rate '
    f'(= {decay * optimizer.learning_rate:g} independent of it)'
  )


def of_plan(run: Any) -> Group:
  """Returns what a run will do; nothing has to be allocated for it."""
  config, data, total = run.config, run.inputs, run.total_steps
  epochs = total * config.batch_size / data.train_examples
  optimizer, classes = config.optimizer, len(data.known.class_names)
  what = _table(f'{config.task.name} with {config.model.name}')
  what.add_row(
    'data',
    f'{config.data.train.source} {config.data.train.split}: '
    f'{data.train_examples:,} examples'
    + (f', {classes:,} classes' if classes else '')
    + (' (as expected; not opened)' if data.planned else ''),
  )
  for name, row in (('train', 'left out'), ('test', 'left out of test')):
    if left_out := texts.left_out(data.source[name]):
      what.add_row(row, left_out)
  shown = next(iter(run.batch.values()))
  shape = ' x '.join(map(str, shown.shape))
  what.add_row('batch', f'{shape} {shown.dtype}')
  if optimizer.accumulate > 1:
    what.add_row('accumulation', f'{optimizer.accumulate} micro-batches')
  what.add_row('length', f'{total:,} steps = {epochs:,.4g} epochs')
  what.add_row(
    'parameters',
    f'{count_parameters(run.state.params):,} '
    f'({_bytes(run.state.params) / 2**20:,.1f} MiB)',
  )
  work = flops.training_flops(run.task)
  what.add_row('work', f'{work / 1e9:,.3g} GFLOP an image in training')
  mesh = ' x '.join(f'{k}={v}' for k, v in run.mesh.shape.items())
  kind = run.mesh.devices.flat[0].device_kind
  what.add_row('mesh', f'{mesh} ({run.mesh.size} x {kind})')
  what.add_row('sharding', _sharding(run))
  what.add_row(
    'state',
    f'{_bytes_per_device(run.state) / 2**20:,.1f} MiB a device '
    f'of {_bytes(run.state) / 2**20:,.1f} MiB',
  )
  what.add_row(
    'optimizer',
    f'{optimizer.name}, learning rate {optimizer.learning_rate:g}, '
    f'{config.schedule.name} schedule',
  )
  if optimizer.weight_decay:
    what.add_row('weight decay', _weight_decay(optimizer))
  points = sorted({round(total * share) for share in (0, 0.1, 0.25, 0.5, 1)})
  what.add_row(
    'schedule',
    '  '.join(
      f'{step:,}: {optimizer.learning_rate * float(run.schedule(step)):.3g}'
      for step in points
    ),
  )
  return Group(what)


def training_seconds(rows: list[dict[str, float]], batch_size: int) -> float:
  """Returns how long a run has trained, without compiling and evaluating."""
  timed = [row for row in rows if 'speed/images_per_sec' in row]
  rates = np.asarray([row['speed/images_per_sec'] for row in timed])
  steps = np.diff([0, *(row['step'] for row in timed)])
  return float((steps * batch_size / rates).sum())


def of_results(workdir: pathlib.Path, run: Any) -> Table:
  """Returns what a finished run has reached."""
  rows = metrics.read(workdir)
  last = {key: value for row in rows for key, value in row.items()}
  table = _table('finished')
  for key, value in last.items():
    if key.startswith(('test/', 'few_shot/')):
      counted = key == 'test/examples'
      table.add_row(key, f'{value:,.0f}' if counted else f'{value:.4f}')
  if 'train/loss' in last:
    table.add_row('train/loss', f'{last["train/loss"]:.4f}')
  timed = [row for row in rows if 'speed/images_per_sec' in row]
  if timed:
    rates = [row['speed/images_per_sec'] for row in timed]
    seconds = training_seconds(rows, run.config.batch_size)
    table.add_row('images/s', f'{np.median(rates):,.0f} (median)')
    table.add_row('training time', progress.spelled(seconds))
  if 'data/broken' in last:
    table.add_row('broken records', f'{last["data/broken"]:,.0f}')
  table.add_row('plots', f'{workdir}/report/')
  return table


def of_speed(title: str, values: dict[str, float]) -> Table:
  """Returns what a benchmark has measured."""
  table = _table(title)
  for name, value in values.items():
    shown = f'{value:,.0f}' if value >= 1000 else f'{value:.4g}'
    if name == 'MFU':
      shown = f'{value:.1%}'
    table.add_row(name, shown)
  return table
