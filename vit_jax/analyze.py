"""Looks inside: `python -m vit_jax.analyze WHAT ...`.

WHAT is one of

  compute   parameters, FLOPs and accelerator time of a configuration, from
            `--config=F`; `--utilisation` is the share of the peak reached

or a picture of a model, from `--workdir=DIR` or `--checkpoint=FILE`, written
to `--out=DIR` as PNG, with the numbers behind it and how to read it:

  filters             what the first layer looks for
  positions           how alike the position embeddings of patches are
  attention-distance  how far every head attends, in pixels
  attention-map       where the attention of all layers leads, on images
  attention-heads     the same of every head of every layer, on an image
  neighbours          which images the model finds most alike
  features            the features of patches, as colours
  all                 all of these that the model has

Images are those of `--images=FOLDER`, or the test data of the run. `--html`
binds all pictures in `--out` into one page.

  study     a table and a plot of all runs below `--workdir=DIR`, against
            `--x=examples`, `--x=exaflops` or a key, `--x=config.KEY`; a line
            for each folder of runs, or each value of `--lines=config.KEY`
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import matplotlib
from rich.console import Console

from vit_jax import command_line, config
from vit_jax.analysis import compute, drawing, examples, page, study
from vit_jax.analysis.pictures import QUESTIONS
from vit_jax.training import run as run_lib
from vit_jax.training import schema, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints or draws what the first argument asks for."""
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


def _pictures(what: str, arguments: Sequence[str], console: Console) -> None:
  """Draws one picture, or all that the model has."""
  known, overrides = command_line.split(_parser(what), arguments)
  _check(known)
  model = command_line.open_model(known, overrides)
  names = [*QUESTIONS] if what == 'all' else [what]

  def say(file: str, reason: str) -> None:
    _print(console, f'skipped, cannot be used: {file} ({reason})')

  @functools.cache
  def images() -> examples.Examples:
    number = known.number or max(QUESTIONS[name].images for name in names)
    return examples.read(model, known.images, number, say)

  left_out = {}
  for name in names:
    try:
      _draw(name, model, images, known, console)
    except config.ConfigError as error:
      if what != 'all':
        raise
      left_out[name] = error
  for name, error in left_out.items():
    _print(console, f'{name} is left out. {error}')
  if known.html:
    _print(console, f'Written to {page.bind(known.out, QUESTIONS)}.')


def _parser(what: str) -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, f'vit_jax.analyze {what}')
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  command_line.add_model(options)
  options.add_argument('--out', type=pathlib.Path, help='folder to write to')
  options.add_argument(
    '--images', type=pathlib.Path, help='folder of images to look at'
  )
  options.add_argument('--number', type=int, help='of images, at most')
  options.add_argument(
    '--html', action='store_true', help='also bind a page, index.html'
  )
  return options


def _check(known: argparse.Namespace) -> None:
  """Raises ConfigError for options that cannot work."""
  _check_out(known.out)
  if known.images and not known.images.is_dir():
    raise config.ConfigError(f'--images={known.images}: no such folder.')
  if known.number is not None and known.number < 1:
    raise config.ConfigError(
      f'--number={known.number} leaves no image: use 1 or more.'
    )


def _check_out(out: pathlib.Path | None) -> None:
  if not out:
    raise config.ConfigError('--out is missing: the folder to write to.')
  if out.exists() and not out.is_dir():
    raise config.ConfigError(f'--out={out} is a file, not a folder.')


def _draw(
  name: str,
  model: trained.Trained,
  images: Callable[[], examples.Examples],
  known: argparse.Namespace,
  console: Console,
) -> None:
  """Asks one question, and writes the answer."""
  question, given = QUESTIONS[name], []
  made_of = f'Made from {known.workdir or known.checkpoint}'
  if known.workdir:
    made_of += f', step {model.step:,}'
  if question.images:
    given = [images().first(known.number or question.images)]
    made_of += f', with {len(given[0].names):,} images of {given[0].source}'
  with matplotlib.rc_context(drawing.STYLE):
    answer = question.answer(model, *given)
    page.save(known.out, name, question.title, answer, f'{made_of}.')
  _print(console, f'{known.out / name}.png: {question.title}')
  _print(console, f'{answer.reading}\n')


def _study(arguments: Sequence[str], console: Console) -> None:
  options = command_line.parser(study.__doc__, 'vit_jax.analyze study')
  options.add_argument('--x', help='examples, exaflops or config.KEY')
  options.add_argument('--lines', help='config.KEY that tells lines apart')
  options.add_argument(
    '--metric', default='test/accuracy', help='test/accuracy by default'
  )
  options.add_argument('--out', type=pathlib.Path, help='folder to write to')
  known, overrides = command_line.split(options, arguments)
  if overrides:
    raise config.ConfigError(f'{overrides[0]}: a study changes nothing.')
  if not known.x:
    raise config.ConfigError('--x is missing: examples, exaflops or config.KEY')
  _check_out(known.out)
  folder = pathlib.Path(command_line.required(known.workdir))
  points = study.collect(folder, known.x, known.lines, known.metric)
  known.out.mkdir(parents=True, exist_ok=True)
  with matplotlib.rc_context(drawing.STYLE):
    figure = study.draw(points, known.x, known.metric)
    figure.savefig(known.out / 'study.png')
  study.write(known.out / 'study.csv', points, known.metric)
  console.print(study.show(points, known.x, known.metric))
  _print(console, f'Written to {known.out}: study.png and study.csv.')


def _print(console: Console, text: str) -> None:
  console.print(text, highlight=False, markup=False)


WHATS: dict[str, Callable[[Sequence[str], Console], None]] = {
  'compute': _compute,
  'study': _study,
  **{name: functools.partial(_pictures, name) for name in (*QUESTIONS, 'all')},
}

if __name__ == '__main__':
  command_line.run(main)
