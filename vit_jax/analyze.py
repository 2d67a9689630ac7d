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
binds all pictures in `--out` into one page. A CLIP is asked about images unless
`--tower=text` is given: then all but `filters` are of its text tower, distances
are in tokens, and texts are those of `--texts=FILE`, or of the test data. A
DALL-E has `positions`, `attention-distance`, `attention-map` (of each word of a
text to the places of its image) and `attention-heads` (what a place is drawn
from), of pairs of the test data.

  study     a table and a plot of all runs below `--workdir=DIR`, against
            `--x=examples`, `--x=exaflops` or a key, `--x=config.KEY`; a line
            for each folder of runs, or each value of `--lines=config.KEY`
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from rich.console import Console

from vit_jax import command_line, config
from vit_jax.analysis import (
  compute,
  decoder_pictures,
  drawing,
  examples,
  page,
  pair_examples,
  pictures,
  probe,
  study,
  text_examples,
  text_pictures,
)
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
  questions = QUESTIONS[known.tower]
  _check_asked(what, questions, f'{known.tower} tower')
  model = command_line.open_model(known, overrides)
  probe.tower(model, known.tower)  # Raises where there is none.
  decodes = probe.is_decoder(model)
  if decodes:
    questions = decoder_pictures.QUESTIONS
    _check_asked(what, questions, f'model of {model.config.task.name}')
    if known.images:
      raise config.ConfigError(
        '--images: this model draws, it is asked about pairs of its test data.'
      )
  names = [*questions] if what == 'all' else [what]
  number = known.number or max(questions[name].examples for name in names)

  def say(file: str, reason: str) -> None:
    _print(console, f'skipped, cannot be used: {file} ({reason})')

  @functools.cache
  def given() -> examples.Examples | text_examples.Texts | pair_examples.Pairs:
    if decodes:
      return pair_examples.read(model, number, say)
    if known.tower == 'text':
      return text_examples.read(model, known.texts, number)
    return examples.read(model, known.images, number, say)

  left_out = {}
  for name in names:
    try:
      _draw(name, questions[name], model, given, known, console)
    except config.ConfigError as error:
      if what != 'all':
        raise
      left_out[name] = error
  for name, error in left_out.items():
    _print(console, f'{name} is left out. {error}')
  if known.html:
    files = [
      _file(name, tower) for tower in QUESTIONS for name in QUESTIONS[tower]
    ]
    files.append('study')
    _print(console, f'Written to {page.bind(known.out, files)}.')


def _check_asked(
  what: str, questions: Mapping[str, pictures.Question], kind: str
) -> None:
  if what not in (*questions, 'all'):
    raise config.ConfigError(
      f'A {kind} has no {what}; it has {", ".join(questions)}.'
    )


def _file(name: str, tower: str) -> str:
  """Returns how the files of an answer begin."""
  return f'text-{name}' if tower == 'text' else name


def _parser(what: str) -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, f'vit_jax.analyze {what}')
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  command_line.add_model(options)
  options.add_argument('--out', type=pathlib.Path, help='folder to write to')
  options.add_argument(
    '--images', type=pathlib.Path, help='folder of images to look at'
  )
  options.add_argument(
    '--tower',
    choices=[*QUESTIONS],
    default='image',
    help='of a model of images and texts; image by default',
  )
  options.add_argument(
    '--texts', type=pathlib.Path, help='file of texts, one a line'
  )
  options.add_argument('--number', type=int, help='of images or texts, at most')
  options.add_argument(
    '--html', action='store_true', help='also bind a page, index.html'
  )
  return options


def _check(known: argparse.Namespace) -> None:
  """Raises ConfigError for options that cannot work."""
  _check_out(known.out)
  if known.images and not known.images.is_dir():
    raise config.ConfigError(f'--images={known.images}: no such folder.')
  if known.images and known.tower == 'text':
    raise config.ConfigError('--images is not for --tower=text: use --texts.')
  if known.texts and known.tower == 'image':
    raise config.ConfigError('--texts needs --tower=text.')
  if known.number is not None and known.number < 1:
    raise config.ConfigError(
      f'--number={known.number} leaves nothing: use 1 or more.'
    )


def _check_out(out: pathlib.Path | None) -> None:
  if not out:
    raise config.ConfigError('--out is missing: the folder to write to.')
  if out.exists() and not out.is_dir():
    raise config.ConfigError(f'--out={out} is a file, not a folder.')


def _draw(
  name: str,
  question: pictures.Question,
  model: trained.Trained,
  read: Callable[[], Any],
  known: argparse.Namespace,
  console: Console,
) -> None:
  """Asks one question, and writes the answer."""
  given = []
  made_of = f'Made from {known.workdir or known.checkpoint}'
  if known.workdir:
    made_of += f', step {model.step:,}'
  if question.examples:
    given = [read().first(known.number or question.examples)]
    kind = 'pair' if probe.is_decoder(model) else known.tower
    made_of += f', with {len(given[0].names):,} {kind}s of '
    made_of += given[0].source
  with matplotlib.rc_context(drawing.STYLE):
    answer = question.answer(model, *given)
    file = _file(name, known.tower)
    page.save(known.out, file, question.title, answer, f'{made_of}.')
  _print(console, f'{known.out / file}.png: {question.title}')
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
  with matplotlib.rc_context(drawing.STYLE):
    answer = study.answer(points, known.x, known.metric)
    title = f'{known.metric} against {known.x}'
    made_of = f'Made from {len(points):,} runs below {folder}.'
    page.save(known.out, 'study', title, answer, made_of)
  study.write(known.out / 'study.csv', points, known.metric)
  console.print(study.show(points, known.x, known.metric))
  _print(console, f'{answer.reading}\n')
  _print(console, f'Written to {known.out}: study.png and study.csv.')


def _print(console: Console, text: str) -> None:
  console.print(text, highlight=False, markup=False)


# By tower; of models without two, all are of images.
QUESTIONS = {'image': pictures.QUESTIONS, 'text': text_pictures.QUESTIONS}
WHATS: dict[str, Callable[[Sequence[str], Console], None]] = {
  'compute': _compute,
  'study': _study,
  **{
    name: functools.partial(_pictures, name)
    for name in (*pictures.QUESTIONS, 'all')
  },
}

if __name__ == '__main__':
  command_line.run(main)
