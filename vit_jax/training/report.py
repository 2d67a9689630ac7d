"""Pictures of a run, as PNG files in `report/`."""

import contextlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from vit_jax.training import metrics, processes, whole_files

Rows = list[dict[str, float]]

_STYLE = {
  'axes.formatter.limits': (-2, 4),
  'axes.formatter.use_mathtext': True,
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'axes.titlelocation': 'left',
  'axes.titleweight': 'bold',
  'figure.titleweight': 'bold',
  'font.size': 11,
  'grid.alpha': 0.3,
  'legend.frameon': False,
  'lines.linewidth': 1.8,
}
_TRAIN, _TEST = 'tab:blue', 'tab:orange'
# A series of more points is drawn faintly behind its moving mean.
_NOISY = 200
# Sheets of a name that are kept: of photographs they take megabytes.
_KEPT = 50


def _number(value: float) -> str:
  return f'{value:.4g}'


def _percent(value: float, digits: int = 4) -> str:
  return f'{100 * value:.{digits}g} %'


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the steps and the finite values of what the rows have of `key`."""
  chosen = [row for row in rows if np.isfinite(row.get(key, np.nan))]
  steps = np.array([row['step'] for row in chosen])
  return steps, np.array([row[key] for row in chosen])


def _figure(rows: Rows, title: str, **options: Any) -> tuple[Figure, Any]:
  """Returns an empty figure of all steps so far, and its axes."""
  figure = Figure(figsize=(8, 4.5), dpi=120, layout='constrained')
  axes = figure.subplots(**options)
  panels = np.ravel(axes)
  panels[0].set_title(title)
  last = panels[-1]
  last.set_xlabel('step')
  last.set_xlim(0, 1.02 * max(row['step'] for row in rows))
  last.xaxis.set_major_locator(MaxNLocator('auto', integer=True))
  last.xaxis.set_major_formatter(EngFormatter(sep=''))
  return figure, axes


def _draw(
  axes: Axes,
  rows: Rows,
  key: str,
  label: str,
  color: str,
  smooth: bool = True,
) -> None:
  """Draws one key over the steps, and with `smooth` its mean if it is long."""
  steps, values = _series(rows, key)
  few = len(steps) < (40 if key.startswith('test/') else 3)
  marker = 'o' if few else None
  if smooth and len(steps) > _NOISY:
    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
    width = len(steps) // 50
    window = np.ones(width) / width
    steps, values = (np.convolve(x, window, 'valid') for x in (steps, values))
  axes.plot(
    steps, values, color=color, label=label, marker=marker, clip_on=not few
  )


def _pair(
  rows: Rows, name: str, title: str, spelled: Callable[[float], str]
) -> tuple[Figure, Axes, np.ndarray] | None:
  """Draws a metric in training and test; None if the rows do not have it.

  Returns:
    The figure, its axes, and the values of both series, one after the other.
  """
  found = {
    key: _series(rows, key)[1] for key in (f'train/{name}', f'test/{name}')
  }
  values = np.concatenate([*found.values()])
  if not len(values):
    return None
  figure, axes = _figure(rows, title)
  for (key, series), color in zip(found.items(), (_TRAIN, _TEST)):
    if len(series):
      _draw(axes, rows, key, f'{key}  {spelled(series[-1])}', color)
  return figure, axes, values


def _finish(figure: Figure, axes: Axes, note: str) -> Figure:
  axes.legend()
  if note:
    figure.supxlabel(note, fontsize=9, color='dimgray', x=0.01, ha='left')
  return figure


def _loss(rows: Rows, task: Mapping[str, Any]) -> Figure | None:
  drawn = _pair(rows, 'loss', 'Loss', _number)
  if drawn is None:
    return None
  figure, axes, values = drawn
  # A spike, or a very bad start, must not flatten all the rest.
  top = min(values.max(), 5 * np.percentile(values, 95))
  low = min(0, values.min())
  axes.set_ylim(low, low + 1.05 * (top - low) or 1)
  harder = [
    f'{name.replace("_", " ")} {task[name]:g}'
    for name in ('label_smoothing', 'mixup')
    if task.get(name)
  ]
  note = harder and (
    f'train/loss is with {" and ".join(harder)}, test/loss is without: the '
    'two cannot be compared.'
  )
  return _finish(figure, axes, note)


def _accuracy(rows: Rows, task: Mapping[str, Any]) -> Figure | None:
  drawn = _pair(rows, 'accuracy', 'Accuracy', _percent)
  if drawn is None:
    return None
  figure, axes, values = drawn
  steps, tested = _series(rows, 'test/accuracy')
  if len(tested) > 1:
    best = tested.argmax()
    axes.plot(
      steps[best],
      tested[best],
      '*',
      color=_TEST,
      markeredgecolor='black',
      markersize=15,
      clip_on=False,
      zorder=3,
      label=f'best  {_percent(tested[best])} at step {steps[best]:,}',
    )
  low, high = values.min(), values.max()
  margin = 0.08 * (high - low) or 0.1
  axes.set_ylim(max(0, low - margin), min(1.005, high + margin))
  axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
  note = task.get('mixup') and (
    'train/accuracy is on mixed images, test/accuracy is not: the two cannot '
    'be compared.'
  )
  return _finish(figure, axes, note)


def _feature_variance(rows: Rows, task: Mapping[str, Any]) -> Figure | None:
  drawn = _pair(rows, 'feature_variance', 'Feature variance', _number)
  if drawn is None:
    return None
  figure, axes, values = drawn
  axes.set_ylim(0, 1.08 * values.max() or 1)
  note = (
    'At 0 all images have the same features, and nothing is learned; at 1 '
    'their directions cancel.'
  )
  return _finish(figure, axes, note)


def _learning_rate(rows: Rows, task: Mapping[str, Any]) -> Figure | None:
  key = 'train/learning_rate'
  _, values = _series(rows, key)
  if not len(values):
    return None
  figure, axes = _figure(rows, 'Learning rate')
  highest, last = values.max(), values[-1]
  label = f'highest {highest:.3g}, last {last:.3g}'
  _draw(axes, rows, key, label, _TRAIN, smooth=False)
  axes.set_ylim(0, 1.08 * highest or 1)
  return _finish(figure, axes, '')


def _speed(rows: Rows, task: Mapping[str, Any]) -> Figure | None:
  """Draws images per second, and below it the share of waiting for data."""
  speed, wait = 'speed/images_per_sec', 'speed/data_wait'
  _, rates = _series(rows, speed)
  if not len(rates):
    return None
  figure, (upper, lower) = _figure(
    rows, 'Images per second', nrows=2, sharex=True, height_ratios=(3, 1)
  )
  label = f'median {np.median(rates):,.0f}'
  _, shares = _series(rows, 'speed/mfu')
  if len(shares):
    label += f', {_percent(np.median(shares), 3)} of peak FLOP/s'
  _draw(upper, rows, speed, 'images/s', _TRAIN)
  upper.axhline(np.median(rates), color='gray', linestyle='--', label=label)
  upper.set_ylim(0, 1.1 * rates.max())
  upper.yaxis.set_major_formatter('{x:,.0f}')
  upper.legend(loc='lower right', ncols=2)
  _, waits = _series(rows, wait)
  lower.set_title('Share of the time waiting for data')
  if len(waits):
    label = f'median {_percent(np.median(waits), 2)}'
    _draw(lower, rows, wait, label, 'tab:red')
    lower.legend(loc='upper right')
  lower.set_ylim(0, max(0.2, 1.2 * waits.max(initial=0)))
  lower.yaxis.set_major_formatter(PercentFormatter(1, 0, symbol=' %'))
  return figure


_CURVES = {
  'accuracy': _accuracy,
  'feature_variance': _feature_variance,
  'learning_rate': _learning_rate,
  'speed': _speed,
  # The last: see `is_complete`.
  'loss': _loss,
}


def _save(figure: Figure, *paths: pathlib.Path) -> None:
  # In memory first: given a name, matplotlib would look for it on this machine.
  file = io.BytesIO()
  figure.savefig(file, format='png')
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write(path, file.getvalue())


def is_complete(workdir: pathlib.Path) -> bool:
  """Whether a run has come to its end, and all of its report is drawn.

  The curve of the loss says so: every run has one, and draws it last.
  """
  return (workdir / 'report' / 'loss.png').exists()


def go_back(workdir: pathlib.Path, step: int) -> None:
  """Removes what says more than a run that goes on from a step has done.

  These are the sheets that are kept of later steps, and what says that the
  report is complete.
  """
  for path in (workdir / 'report').glob('*/*.png'):
    if path.stem.isdecimal() and int(path.stem) > step:
      path.unlink()
  (workdir / 'report' / 'loss.png').unlink(missing_ok=True)


def write(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Draws the curves of a run; returns the files.

  What `metrics.jsonl` has no figures of is not drawn. With this a report is
  complete.
  """
  rows = metrics.read(workdir)
  task = json.loads((workdir / 'config.json').read_text())['task']
  files = []
  with matplotlib.rc_context(_STYLE):
    for name, curve in _CURVES.items():
      if figure := curve(rows, task):
        files.append(workdir / 'report' / f'{name}.png')
        _save(figure, files[-1])
  return files


def kept_every(evaluated: int, total: int) -> int:
  """Returns every how many steps the sheets of an evaluation are kept.

  That is each evaluation, or of very many one in so many that disks are not
  filled with pictures that hardly differ.

  Args:
    evaluated: every how many steps a run is evaluated.
    total: steps of the run.
  """
  return evaluated * max(1, -(-(total // evaluated) // _KEPT))


def kept(workdir: pathlib.Path, name: str, step: int) -> pathlib.Path:
  """Returns where the sheet of a step is kept."""
  return workdir / 'report' / name / f'{step:08}.png'


def sheets(task: Any) -> tuple[str, ...]:
  """Returns the names of what is drawn while a task is learned."""
  return getattr(task, 'sheets', ())


def write_examples(
  workdir: pathlib.Path,
  task: Any,
  variables: Mapping[str, Any],
  batches: Iterable[Mapping],
  step: int | None = None,
  only_sheets: bool = False,
) -> list[pathlib.Path]:
  """Draws what a task shows of its test data; returns the files.

  A task that has something to show has a method `pictures(variables,
  batches)`, which yields (name, matplotlib figure). What of it is worth looking
  at while the task is learned has its names in the attribute `sheets`. These
  come first, in this order, and are cheap: few batches are read, and nothing is
  compiled a second time.

  Args:
    workdir: of the run.
    task: what was learned.
    variables: that are evaluated.
    batches: test data on the devices; not read where nothing is shown.
    step: under which sheets are kept besides, see `kept`; None for not.
    only_sheets: whether to draw nothing else.
  """
  if not hasattr(task, 'pictures'):
    return []
  files, several = [], sheets(task)
  with (
    matplotlib.rc_context(_STYLE),
    contextlib.closing(task.pictures(variables, batches)) as pictures,
  ):
    # No further: to be asked for more it may read all batches.
    some = itertools.islice(pictures, len(several) if only_sheets else None)
    for name, figure in some:
      if processes.first():
        paths = [workdir / 'report' / f'{name}.png']
        if step is not None and name in several:
          paths.append(kept(workdir, name, step))
        _save(figure, *paths)
        files += paths
  return files
