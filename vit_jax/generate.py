"""Draws pictures of texts by a run of text_to_image:

  python -m vit_jax.generate --workdir=D --out=DIR \\
    --prompt='a small red circle above a blue square' --count=64

writes each as a PNG file into DIR, and all pictures of a text onto one sheet.
`--prompts=FILE` has one text a line. `--clip=D2` scores the pictures by a run
that has learned images and texts, and `--rerank=8` keeps the best eight.

`--complete=IMAGE --rows=K` keeps the upper K rows of codes of an image, and
draws the rest.

Every file says how it was made: `--from=FILE.png --out=DIR` does it again.
A folder that has pictures already is refused, unless `--overwrite` says that
they are to be replaced.
"""

import argparse
import contextlib
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.generation import pictures, scores
from vit_jax.generation.sampler import Sampler, Wanted
from vit_jax.models.decoding import Sampling
from vit_jax.training import matching, trained
from vit_jax.training.progress import ProgressBar

# Of the files that are written, see `_write`.
_NAME = re.compile(r'(\d+-)?(\d+|sheet)\.png')


def main(arguments: Sequence[str], console: Console) -> None:
  """Writes pictures, and prints where they are."""
  options = _parser()
  known, overrides = command_line.split(options, arguments)
  _check_out(known.out)
  if known.repeat:
    _check_repeat(known, command_line.given(options, arguments))
    _repeat(known, overrides, console)
    return
  _check(known)
  prompts, sampling = _prompts(known), command_line.sampling(known)
  workdir = command_line.required(known.workdir)
  sampler = Sampler(trained.load(workdir, known.step, overrides))
  matcher = command_line.open_clip(known)
  if matcher is not None:
    _try(matcher, sampler, prompts, known.count)
  given = _given(sampler, known)
  for text in sampler.cut(prompts):
    _print(console, f'too long, the end is not read: {text}')
  facts = {
    'workdir': str(workdir),
    'step': sampler.model.step,
    'seed': known.seed,
    **sampling._asdict(),
    'given': None if given is None else given.codes[: known.rows].tolist(),
    'clip': known.clip,
    'overrides': list(overrides),
  }
  drawn = _drawn(sampler, prompts, facts, known.count, console)
  for line, several in enumerate(drawn, 1):
    prefix = f'{line:0{len(str(len(prompts)))}}-' if len(prompts) > 1 else ''
    kept = _ranked(several, matcher)[: known.rerank]
    if line == 1:
      _remove_older(known.out)
    _write(kept, known.out, prefix, given, console)


def _parser() -> argparse.ArgumentParser:
  options = command_line.parser(__doc__, 'vit_jax.generate')
  options.formatter_class = argparse.RawDescriptionHelpFormatter
  options.add_argument('--step', help='of the checkpoint; newest by default')
  options.add_argument('--prompt', help='what to draw')
  options.add_argument(
    '--prompts', type=pathlib.Path, help='file of texts to draw, one a line'
  )
  options.add_argument(
    '--count', type=int, default=8, help='pictures of each text; 8 by default'
  )
  options.add_argument('--clip', help='run or released checkpoint to score by')
  command_line.add_told(options)
  options.add_argument('--rerank', type=int, help='so many of them are kept')
  options.add_argument('--seed', type=int, default=0, help='0 by default')
  command_line.add_sampling(options)
  options.add_argument(
    '--complete', type=pathlib.Path, help='image whose upper part is kept'
  )
  options.add_argument('--rows', type=int, help='of codes that are kept')
  options.add_argument(
    '--from',
    dest='repeat',
    type=pathlib.Path,
    help='picture or sheet to make again',
  )
  options.add_argument('--out', type=pathlib.Path, help='folder to write to')
  options.add_argument(
    '--overwrite', action='store_true', help='replace what is there'
  )
  return options


def _check_out(out: pathlib.Path | None) -> None:
  if not out:
    raise ConfigError('--out is missing: the folder to write to.')
  command_line.check_folder(out, out)


def _check_repeat(known: argparse.Namespace, given: set[str]) -> None:
  """Raises ConfigError for options of which the picture says how they were."""
  may = {'out', 'overwrite', 'repeat', 'step', 'workdir'}
  if others := given - may:
    raise ConfigError(
      f'{known.repeat} says how it was made: leave out '
      f'--{min(others).replace("_", "-")}.'
    )
  _check_elsewhere(known.out, known.repeat)
  if (path := known.out / known.repeat.name).exists() and not known.overwrite:
    raise ConfigError(
      f'{path} is there already. Choose another folder, or ask for it to be '
      'replaced (--overwrite).'
    )


def _check_elsewhere(out: pathlib.Path, image: pathlib.Path) -> None:
  """Raises ConfigError for writing to where an image is that is read."""
  # Where it is linked from counts, too.
  if out.resolve() in (image.parent.resolve(), image.resolve().parent):
    raise ConfigError(
      f'--out={out} is where {image} is, which could be overwritten: name '
      'another folder.'
    )


def _check(known: argparse.Namespace) -> None:
  """Raises ConfigError for options that cannot work together."""
  if known.count < 1:
    raise ConfigError(f'--count={known.count} draws nothing: use 1 or more.')
  command_line.check_seed(known.seed)
  if known.rerank is not None:
    if not known.clip:
      raise ConfigError(
        '--rerank needs a model that scores pictures: name its run by --clip.'
      )
    if not 1 <= known.rerank <= known.count:
      raise ConfigError(
        f'--rerank={known.rerank} cannot be kept of --count={known.count} '
        'pictures of each text.'
      )
  if (known.complete is None) != (known.rows is None):
    raise ConfigError(
      '--complete names an image and --rows how many rows of its codes are '
      'kept: give both or neither.'
    )
  if known.complete:
    _check_elsewhere(known.out, known.complete)
  older = sorted(known.out.glob('*.png'))
  if older and not known.overwrite:
    raise ConfigError(
      f'--out={known.out} has pictures already, such as {older[0].name}. '
      'Choose another folder, or ask for them to be replaced (--overwrite).'
    )


def _prompts(known: argparse.Namespace) -> list[str]:
  """Returns the texts to draw."""
  if known.prompt is not None and not known.prompt.strip():
    raise ConfigError(
      f'--prompt={known.prompt!r} has no text: say what to draw. A model that '
      'has learned without texts too (task.caption_dropout) draws as if there '
      'were none by --guidance=0, without --top-k and --top-p, and any text.'
    )
  if (known.prompt is None) == (known.prompts is None):
    raise ConfigError('Say what to draw by --prompt=TEXT or --prompts=FILE.')
  if known.prompt is not None:
    return [known.prompt]
  try:
    lines = known.prompts.read_text(encoding='utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f'--prompts={known.prompts}: {error}') from error
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ConfigError(f'--prompts={known.prompts} has no text in it.')
  return prompts


def _try(
  matcher: matching.Matcher, sampler: Sampler, prompts: list[str], count: int
) -> None:
  """Raises ConfigError for a model that cannot score what will be drawn."""
  blank = np.zeros(sampler.model.task.image_shape, np.uint8)
  with scores.looking('--clip'):
    matcher.score([blank] * min(count, scores.TRIED), prompts[:1])


def _given(
  sampler: Sampler, known: argparse.Namespace
) -> pictures.Given | None:
  """Returns the image whose upper part is kept; None without."""
  if known.complete is None:
    return None
  if not 1 <= known.rows < sampler.rows:
    raise ConfigError(
      f'--rows={known.rows}: a picture of this model has {sampler.rows} rows '
      f'of codes, of which 1 to {sampler.rows - 1} can be kept.'
    )
  try:
    codes = sampler.encode([known.complete.read_bytes()])
  except (OSError, ValueError) as error:
    raise ConfigError(f'--complete={known.complete}: {error}') from error
  return pictures.Given(codes[0], sampler.decode(codes)[0])


def _drawn(
  sampler: Sampler,
  prompts: Sequence[str],
  facts: dict[str, Any],
  count: int,
  console: Console,
) -> Iterator[list[pictures.Picture]]:
  """Yields the pictures of each text, and says how far it is."""
  wanted = [
    Wanted(text, line, number)
    for line, text in enumerate(prompts)
    for number in range(count)
  ]
  bar, started = ProgressBar(console, 0, len(wanted)), time.perf_counter()
  several = []
  try:
    images = sampler.draw(wanted, facts['seed'], *_of_facts(facts))
    for done, (one, image) in enumerate(zip(wanted, images), 1):
      bar.step(done)
      own = {'prompt': one.text, 'line': one.line, 'number': one.number}
      several.append(pictures.Picture(image, {**own, **facts}))
      if done == len(wanted):
        # Before, those of a whole batch come at once.
        speed = done / (time.perf_counter() - started)
        bar.log(done, f'{speed:.2f} pictures/s')
      if len(several) == count:
        yield several
        several = []
  finally:
    bar.close()


def _of_facts(facts: Mapping[str, Any]) -> tuple[Sampling, np.ndarray | None]:
  """Returns how a picture was drawn, and the codes that were given."""
  sampling = Sampling(**{name: facts[name] for name in Sampling._fields})
  given = facts['given']
  return sampling, None if given is None else np.array(given, np.int32)


def _ranked(
  several: list[pictures.Picture], matcher: matching.Matcher | None
) -> list[pictures.Picture]:
  """Returns pictures of one text with their scores, the best first."""
  if matcher is None:
    return several
  images = [picture.image for picture in several]
  text = several[0].facts['prompt']
  order, scores = matcher.rerank(images, text, len(images))
  return [several[n]._replace(score=float(scores[n])) for n in order]


def _remove_older(out: pathlib.Path) -> None:
  """Removes what was written here, so that none is taken for what is new."""
  for path in out.glob('*.png'):
    # Not what only bears such a name, nor what somebody has named.
    with contextlib.suppress(ConfigError):
      if _NAME.fullmatch(path.name) and pictures.read(path):
        path.unlink()


def _write(
  kept: Sequence[pictures.Picture],
  out: pathlib.Path,
  prefix: str,
  given: pictures.Given | None,
  console: Console,
) -> None:
  """Writes the pictures of one text, and their sheet."""
  out.mkdir(parents=True, exist_ok=True)
  digits = len(str(len(kept)))
  for rank, picture in enumerate(kept, 1):
    pictures.save(picture, out / f'{prefix}{rank:0{digits}}.png')
  path = out / f'{prefix}sheet.png'
  pictures.save_sheet(kept, path, given)
  best = kept[0]
  scored = '' if best.score is None else f', the best {best.score:.3f}'
  number = f'{len(kept)} picture{"s" if len(kept) > 1 else ""}'
  _print(console, f'{path}: {number}{scored}  {best.facts["prompt"]}')


def _repeat(
  known: argparse.Namespace, overrides: Sequence[str], console: Console
) -> None:
  """Makes a picture or a sheet again, by what its file says."""
  before = pictures.read(known.repeat)
  facts = before.facts
  workdir = epath.Path(known.workdir or facts['workdir'])
  step = known.step or str(facts['step'])
  overrides = overrides or facts['overrides']
  sampler = Sampler(trained.load(workdir, step, overrides))
  path = known.out / known.repeat.name
  _write_again(sampler, before, path)
  image = pictures.read(path).image
  if image.shape != before.image.shape:
    _print(console, f'{path}: another size than {known.repeat}.')
    return
  differ = (image != before.image).any(-1).mean()
  same = 'every pixel as before' if not differ else f'{differ:.2%} differ'
  _print(console, f'{path}: {same}.')


def _write_again(
  sampler: Sampler, before: pictures.Picture, path: pathlib.Path
) -> None:
  """Draws what a file shows, and writes it as it was written."""
  shown, whole = pictures.shown(before)
  wanted = [
    Wanted(facts['prompt'], facts['line'], facts['number'])
    for facts, _ in shown
  ]
  settings = before.facts['seed'], *_of_facts(before.facts)
  drawn = [
    pictures.Picture(image, *own)
    for image, own in zip(sampler.draw(wanted, *settings), shown)
  ]
  path.parent.mkdir(parents=True, exist_ok=True)
  if not pictures.is_sheet(before):
    pictures.save(drawn[0], path)
    return
  given = None
  if whole is not None:
    given = pictures.Given(whole, sampler.decode(whole[None])[0])
  pictures.save_sheet(drawn, path, given)


def _print(console: Console, text: str) -> None:
  console.print(text, highlight=False, markup=False)


if __name__ == '__main__':
  command_line.run(main)
