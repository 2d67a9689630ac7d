"""All results of an evaluation as one page of Markdown.

Rows of a table are what the caller names: data sets, a baseline beside a model,
chance. Tables are readable as plain text; shares are in per cent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from vit_jax.evaluation import (
  corruptions,
  few_shot,
  linear_probe,
  retrieval,
  zero_shot,
)


def write(
  title: str,
  facts: Mapping[str, str],
  *,
  metric_results: Mapping[str, Mapping[str, float]] | None = None,
  zero_shot_results: Mapping[str, zero_shot.Result] | None = None,
  retrieval_results: Mapping[str, retrieval.Result] | None = None,
  linear_probe_results: Mapping[str, linear_probe.Result] | None = None,
  few_shot_results: Mapping[str, Sequence[few_shot.Result]] | None = None,
  corruption_results: Mapping[str, corruptions.Result] | None = None,
  variant_results: Mapping[str, zero_shot.Result] | None = None,
) -> str:
  """Returns the page.

  Args:
    title: of the page.
    facts: what a reader needs to know to repeat it, such as the checkpoint, its
      step, the data and its preprocessing.
    metric_results: figures by their names, a table for each data.
    zero_shot_results: by the name of their row.
    retrieval_results: likewise; in one table for each direction.
    linear_probe_results: likewise.
    few_shot_results: of several numbers of examples, likewise.
    corruption_results: a table each, by what it is about.
    variant_results: of `imagenet_variants`, by the name of their row.
  """
  parts = [f'# {title}']
  if facts:
    parts.append('\n'.join(f'- {name}: {fact}' for name, fact in facts.items()))
  if metric_results:
    parts += _metrics(metric_results)
  if zero_shot_results:
    parts += ['## Zero-shot classification', *_classified(zero_shot_results)]
  if retrieval_results:
    parts += _retrieval(retrieval_results)
  if linear_probe_results:
    parts += _linear_probe(linear_probe_results)
  if few_shot_results:
    parts += _few_shot(few_shot_results)
  if corruption_results:
    parts += _corruptions(corruption_results)
  if variant_results:
    parts += ["## ImageNet's variants", *_classified(variant_results)]
  return '\n\n'.join(parts) + '\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a Markdown table whose columns line up as plain text.

  Args:
    head: of the columns; the first is of words, the others of numbers.
    rows: as many cells each.
  """
  lines = [[cell.replace('|', r'\|') for cell in row] for row in (head, *rows)]
  widths = [max(3, *map(len, column)) for column in zip(*lines)]
  rule = [
    '-' * width if column == 0 else '-' * (width - 1) + ':'
    for column, width in enumerate(widths)
  ]
  lines.insert(1, rule)
  return '\n'.join(
    '| ' + ' | '.join(_padded(line, widths)) + ' |' for line in lines
  )


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
  return [
    cell.rjust(width) if column else cell.ljust(width)
    for column, (cell, width) in enumerate(zip(line, widths))
  ]


def _percent(share: float) -> str:
  return f'{100 * share:.1f}'


def _with_error(share: float, examples: int) -> str:
  """Returns a share with its standard error, as of independent examples."""
  error = math.sqrt(share * (1 - share) / examples)
  return f'{_percent(share)} ± {_percent(error)}'


def _metrics(results: Mapping[str, Mapping[str, float]]) -> list[str]:
  parts = ['## Metrics', 'As they are, not in per cent.']
  for name, figures in results.items():
    rows = [
      (key, f'{value:,}' if isinstance(value, int) else f'{value:.4f}')
      for key, value in figures.items()
    ]
    parts.append(table((name, 'mean'), rows))
  return parts


def _classified(results: Mapping[str, zero_shot.Result]) -> list[str]:
  rows = [
    (
      name,
      _with_error(result.top_1, result.examples),
      _percent(result.top_5) if result.classes > 5 else '',
      _percent(result.mean_per_class),
      f'{result.classes:,}',
      f'{result.examples:,}',
    )
    for name, result in results.items()
  ]
  head = ('data', 'top-1', 'top-5', 'per class', 'classes', 'images')
  return [
    'Accuracy in per cent ± one standard error; "per class" is its mean over\n'
    'the classes.',
    table(head, rows),
  ]


def _retrieval(results: Mapping[str, retrieval.Result]) -> list[str]:
  parts = [
    '## Retrieval',
    'R@k is the share of the queries, in per cent, that have something right\n'
    'among the first k; "median" is the rank of the first that is right. Ties\n'
    'are broken at random, and the figures are expectations over that.',
  ]
  for field, heading in (
    ('image_to_text', 'text of an image'),
    ('text_to_image', 'image of a text'),
  ):
    rows = []
    for name, result in results.items():
      found = getattr(result, field)
      recalls = [_percent(found.recalls[k]) for k in retrieval.RECALLS]
      sizes = (f'{found.queries:,}', f'{found.candidates:,}')
      rows.append((name, *recalls, f'{found.median_rank:g}', *sizes))
    recalls = [f'R@{k}' for k in retrieval.RECALLS]
    parts.append(
      table((heading, *recalls, 'median', 'queries', 'candidates'), rows)
    )
  return parts


def _linear_probe(results: Mapping[str, linear_probe.Result]) -> list[str]:
  rows = [
    (
      name,
      _with_error(result.accuracy, result.examples),
      _percent(result.mean_per_class),
      f'{result.c:.3g}' + ('' if result.converged else ' *'),
      f'{result.examples:,}',
    )
    for name, result in results.items()
  ]
  parts = [
    '## Linear probe',
    'Logistic regression on frozen features; C was chosen on validation data.',
    table(('data', 'accuracy', 'per class', 'C', 'images'), rows),
  ]
  if not all(result.converged for result in results.values()):
    parts.append('\\* not converged after 1,000 iterations')
  return parts


def _few_shot(results: Mapping[str, Sequence[few_shot.Result]]) -> list[str]:
  shots = sorted({one.shots for several in results.values() for one in several})
  rows = []
  for name, several in results.items():
    found = {one.shots: one for one in several}
    cells = [_mean(found[count]) if count in found else '' for count in shots]
    rows.append((name, *cells))
  return [
    '## Few-shot classification',
    'Accuracy in per cent of least squares on so many examples of each class,\n'
    '± the standard deviation between choices of these.',
    table(('data', *(f'{count}-shot' for count in shots)), rows),
  ]


def _mean(result: few_shot.Result) -> str:
  if len(result.accuracies) < 2:
    return _percent(result.mean)
  return f'{_percent(result.mean)} ± {_percent(result.spread)}'


def _corruptions(results: Mapping[str, corruptions.Result]) -> list[str]:
  parts = [
    '## Corrupted images',
    'Accuracy in per cent at strengths 1 to 5; "kept" is the mean as a share\n'
    'of the accuracy on the images as they are.',
  ]
  for name, result in results.items():
    rows = []
    for corruption, accuracies in result.accuracies.items():
      mean = sum(accuracies) / len(accuracies)
      kept = _percent(mean / result.clean) if result.clean else ''
      cells = map(_percent, (*accuracies, mean))
      rows.append((corruption.replace('_', ' '), *cells, kept))
    strengths = map(str, corruptions.STRENGTHS)
    parts += [
      f'{name}: {_percent(result.clean)} without corruption, '
      f'{_percent(result.mean)} in the mean over all.',
      table(('corruption', *strengths, 'mean', 'kept'), rows),
    ]
  return parts
