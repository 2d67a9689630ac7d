"""Plots of a run, as PNG files in `report/`."""

import pathlib

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from vit_jax.training import metrics

_STYLE = {
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titleweight': 'bold',
  'font.size': 11,
  'grid.alpha': 0.3,
  'lines.linewidth': 1.8,
}


def _series(rows: list[dict], key: str) -> tuple[list, list]:
  chosen = [row for row in rows if key in row]
  return [row['step'] for row in chosen], [row[key] for row in chosen]


def _curves(rows: list[dict], keys: tuple, title: str, path: pathlib.Path):
  """Draws what the rows have of `keys` over steps; returns the axes."""
  figure = Figure(figsize=(8, 4.5), dpi=120, layout='constrained')
  axes = figure.subplots()
  drawn = 0
  for key, color in zip(keys, ('tab:blue', 'tab:orange')):
    steps, values = _series(rows, key)
    if not steps:
      continue
    marker = 'o' if key.startswith('test/') and len(steps) < 40 else None
    axes.plot(steps, values, color=color, marker=marker, label=key)
    axes.annotate(
      f'{values[-1]:.4g}',
      (steps[-1], values[-1]),
      xytext=(4, 0),
      textcoords='offset points',
      color=color,
      va='center',
    )
    drawn += 1
  if not drawn:
    return None
  axes.set(title=title, xlabel='step')
  axes.xaxis.set_major_formatter(EngFormatter(sep=''))
  axes.margins(x=0.08)
  if drawn > 1:
    axes.legend(frameon=False)
  return figure, axes


def write(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Draws loss, accuracy, learning rate and speed; returns the files."""
  rows = metrics.read(workdir)
  folder = workdir / 'report'
  folder.mkdir(exist_ok=True)
  plots = {
    'loss': (('train/loss', 'test/loss'), 'Loss'),
    'accuracy': (('train/accuracy', 'test/accuracy'), 'Accuracy'),
    'learning_rate': (('train/learning_rate',), 'Learning rate'),
    'speed': (('speed/images_per_sec',), 'Images per second'),
  }
  files = []
  with matplotlib.rc_context(_STYLE):
    for name, (keys, title) in plots.items():
      path = folder / f'{name}.png'
      drawn = _curves(rows, keys, title, path)
      if drawn is None:
        continue
      figure, axes = drawn
      if name == 'accuracy':
        axes.yaxis.set_major_formatter(PercentFormatter(1))
      if name == 'speed':
        axes.set_ylim(bottom=0)
      figure.savefig(path)
      files.append(path)
  return files
