"""What a classifier gets wrong: its worst mistakes, and its confusions."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = jax.Array

# Images on the sheet of mistakes, and classes in a confusion matrix.
_MISTAKES, _CLASSES = 24, 30
_COLUMNS = 6


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A wrong prediction: [height, width, channels] image and two classes."""

  image: np.ndarray
  label: int
  prediction: int
  confidence: float


@dataclasses.dataclass(frozen=True)
class Predictions:
  """What a model says about a data set.

  Attributes:
    label: [examples], the true class of each.
    prediction: [examples], the most probable class of each.
    mistakes: the wrong ones it is surest of, the surest first.
    value_range: smallest and largest value in all images.
  """

  label: np.ndarray
  prediction: np.ndarray
  mistakes: list[Mistake]
  value_range: tuple[float, float]


def _make_look(predict: Callable) -> Callable:
  """Returns a jitted function from a batch to what is kept of it.

  That is a dict of small arrays, and the images of the mistakes that the
  model is surest of, [mistakes, height, width, channels].
  """

  @jax.jit
  def look(variables, batch):
    image, label, mask = batch['image'], batch['label'], batch['mask'] > 0
    probability = predict(variables, image)
    prediction = probability.argmax(-1)
    wrong = mask & (prediction != label)
    sure, index = jax.lax.top_k(
      jnp.where(wrong, probability.max(-1), 0), min(_MISTAKES, len(label))
    )
    real = mask[:, None, None, None]
    kept = dict(
      mask=mask,
      label=label,
      prediction=prediction,
      confidence=sure,
      index=index,
      low=jnp.where(real, image, jnp.inf).min(),
      high=jnp.where(real, image, -jnp.inf).max(),
    )
    return kept, image[index]

  return look


def _fetch(tree: Any) -> Any:
  """Returns arrays that may lie on several hosts, on each of them."""
  return multihost_utils.process_allgather(tree, tiled=True)


def _surest(mistakes: list[Mistake], kept: dict, images: Array) -> list:
  """Merges a batch's mistakes into the list; fetches images only if any."""
  full = len(mistakes) == _MISTAKES
  least = mistakes[-1].confidence if full else 0
  chosen = np.flatnonzero(kept['confidence'] > least)
  if not len(chosen):
    return mistakes
  images = _fetch(images)
  new = []
  for i in chosen:
    example = kept['index'][i]
    new.append(
      Mistake(
        np.copy(images[i]),  # A view would keep all of them.
        int(kept['label'][example]),
        int(kept['prediction'][example]),
        float(kept['confidence'][i]),
      )
    )
  both = sorted([*mistakes, *new], key=lambda x: x.confidence, reverse=True)
  return both[:_MISTAKES]


def collect(
  predict: Callable[[Mapping[str, Any], Array], Array],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Array]],
) -> Predictions:
  """Predicts every example once; of the images, it keeps the worst few.

  Args:
    predict: from variables and images [batch, height, width, channels] to
      the probability of each class, [batch, classes].
    variables: of the model.
    batches: on the devices: `image`, `label`, and `mask` [batch], 0 where an
      example is padding.
  """
  look = _make_look(predict)
  labels, predictions, mistakes, lows, highs = [], [], [], [], []
  for batch in batches:
    kept, images = look(variables, batch)
    kept = _fetch(kept)
    labels.append(kept['label'][kept['mask']])
    predictions.append(kept['prediction'][kept['mask']])
    lows.append(kept['low'])
    highs.append(kept['high'])
    mistakes = _surest(mistakes, kept, images)
  return Predictions(
    np.concatenate(labels),
    np.concatenate(predictions),
    mistakes,
    (float(min(lows)), float(max(highs))),
  )


def confused_classes(
  label: np.ndarray, prediction: np.ndarray, classes: int
) -> np.ndarray:
  """Returns which classes to show: all, or those most often confused.

  Pairs of classes are taken by the number of times that one was mistaken for
  the other, as long as there is room for both.
  """
  if classes <= _CLASSES:
    return np.arange(classes)
  pairs = np.sort(np.stack([label, prediction]), axis=0)
  pairs = pairs[:, label != prediction]
  pairs, times = np.unique(pairs, axis=1, return_counts=True)
  chosen = set()
  for pair in pairs[:, np.argsort(-times, kind='stable')].T:
    if len(chosen | {*pair}) > _CLASSES:
      break
    chosen |= {*pair}
  return np.array(sorted(chosen) or range(_CLASSES))


def confusion_matrix(
  label: np.ndarray, prediction: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
  """Counts predictions by true class: [chosen, chosen + 1].

  Args:
    label: [examples].
    prediction: [examples].
    chosen: classes, ascending; the last column is for all others.
  """
  counts = np.zeros((len(chosen), len(chosen) + 1), int)
  shown = np.isin(label, chosen)
  row = np.searchsorted(chosen, label[shown])
  said = prediction[shown]
  column = np.searchsorted(chosen, said)
  column = np.where(np.isin(said, chosen), column, len(chosen))
  np.add.at(counts, (row, column), 1)
  return counts


def _short(name: str) -> str:
  """Returns the first of a class's names, cut to what fits a picture."""
  name = name.split(',')[0]
  return name if len(name) <= 18 else f'{name[:17]}…'


def _title(mistake: Mistake, class_names: Sequence[str]) -> str:
  truth = _short(class_names[mistake.label])
  prediction = _short(class_names[mistake.prediction])
  gap = ' ' if len(truth) + len(prediction) < 15 else '\n'
  return f'{truth} →{gap}{prediction}  {100 * mistake.confidence:.0f} %'


def draw_mistakes(found: Predictions, class_names: Sequence[str]) -> Figure:
  """Draws the mistakes that the model is surest of, with what it said."""
  wrong = int((found.label != found.prediction).sum())
  rows = max(1, -(-len(found.mistakes) // _COLUMNS))
  height = 0.7 + 1.9 * rows
  figure = Figure(figsize=(9.6, height), dpi=120)
  figure.suptitle(
    f'Wrong about {wrong:,} of {len(found.label):,} test images'
    + ('; surest first: truth → prediction' if wrong else ''),
    x=0.02,
    y=1 - 0.12 / height,
    ha='left',
  )
  grid = figure.subplots(rows, _COLUMNS, squeeze=False)
  figure.subplots_adjust(
    0.02, 0.1 / height, 0.98, 1 - 0.85 / height, wspace=0.1, hspace=0.35
  )
  low, high = found.value_range
  for axes in grid.flat:
    axes.axis('off')
  for axes, mistake in zip(grid.flat, found.mistakes):
    image = (mistake.image - low) / max(high - low, 1e-9)
    if image.shape[-1] != 3:
      image = image[..., 0]
    axes.imshow(image, cmap='gray', vmin=0, vmax=1)
    axes.set_title(
      _title(mistake, class_names), fontsize=8, weight='normal', loc='center'
    )
  return figure


def _paint(axes: Axes, counts: np.ndarray) -> None:
  """Colours shares of each row, right ones blue and wrong ones orange."""
  share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  right = np.eye(*counts.shape, dtype=bool)
  wrong = ~right & (counts > 0)
  most = share[wrong].max(initial=0.01)
  # The darkest shades are left out: the numbers are black.
  for where, colors, top in ((right, 'Blues', 2), (wrong, 'Oranges', 2 * most)):
    axes.imshow(np.ma.masked_where(~where, share), colors, vmin=0, vmax=top)
  for row, column in np.argwhere(counts):
    axes.text(
      column,
      row,
      f'{counts[row, column]}',
      ha='center',
      va='center',
      fontsize=8,
    )


def _name_axes(axes: Axes, rows: list[str], columns: list[str]) -> None:
  """Writes the classes at a matrix, and puts lines between its cells."""
  axes.set(xlabel='prediction', ylabel='truth')
  slanted = max(map(len, columns)) > 3
  axes.set_xticks(
    range(len(columns)),
    columns,
    rotation=45 if slanted else 0,
    ha='right' if slanted else 'center',
    rotation_mode='anchor' if slanted else None,
  )
  axes.set_yticks(range(len(rows)), rows)
  axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
  axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
  axes.grid(False)
  axes.grid(which='minor')


def draw_confusion(found: Predictions, class_names: Sequence[str]) -> Figure:
  """Draws a confusion matrix, of the most confused classes if they are many."""
  classes = len(class_names)
  chosen = confused_classes(found.label, found.prediction, classes)
  counts = confusion_matrix(found.label, found.prediction, chosen)
  rows = [_short(class_names[i]) for i in chosen]
  columns = [*rows, 'any other']
  title = f'Confusion of {classes:,} classes'
  if len(chosen) == classes:
    counts, columns = counts[:, :-1], rows
  else:
    title = f'The {len(chosen)} most confused of {classes:,} classes'
  size = max(5.5, 2 + 0.4 * len(columns))
  figure = Figure(figsize=(size + 0.5, size), dpi=120, layout='constrained')
  figure.suptitle(title, x=0.02, ha='left')
  axes = figure.subplots()
  _paint(axes, counts)
  _name_axes(axes, rows, columns)
  examples, right = counts.sum(1), counts.diagonal()
  beside = axes.secondary_yaxis('right')
  beside.set_yticks(
    range(len(rows)),
    [
      f'{100 * r / n:.1f} %' if n else 'no images'
      for r, n in zip(right, examples)
    ],
  )
  beside.set_ylabel('accuracy')
  for side in (axes, beside):
    side.tick_params(which='both', length=0)
    side.spines[:].set_visible(False)
  return figure


# Name of each picture, and what draws it.
PICTURES = {'mistakes': draw_mistakes, 'confusion': draw_confusion}
