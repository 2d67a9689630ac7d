"""What the entry points share: options, exit codes, errors without traces."""

import argparse
import dataclasses
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import resources

import jax
from etils import epath
from rich.console import Console

from vit_jax import released
from vit_jax.config import ConfigError, did_you_mean
from vit_jax.data.pipeline import BrokenDataError
from vit_jax.models.decoding import Sampling
from vit_jax.training import matching, saved, trained
from vit_jax.training.checkpoint import CheckpointError
from vit_jax.training.loop import Preempted, TrainingError

# Lists of class names that come with this package.
_CLASS_NAMES = ('imagenet',)
# What the options of `add_sampling` mean.
_SAMPLING = {
  'temperature': 'a finite number of 0 or more',
  'top_k': 'a number of codes such as 64, or a share of all such as 0.1',
  'top_p': 'a probability from 0 to 1',
  'guidance': 'a finite number of 0 or more',
}

# Exit codes. A supervisor should start again after anything but these, and
# after PREEMPTED; the others would only happen again, or are wanted.
DONE = 0
CRASHED = 1  # A fault of the program: the one that Python itself gives.
REFUSED = 2  # The configuration or the request cannot work.
STOPPED = 3  # Data, training or checkpoints are broken: not finite, damaged.
PREEMPTED = 75  # Asked to stop, everything saved: start again to go on.
INTERRUPTED = 130  # Ctrl-C, as shells say it.


def parser(description: str, prog: str) -> argparse.ArgumentParser:
  """Returns a parser that knows `--workdir`."""
  result = argparse.ArgumentParser(
    prog=f'python -m {prog}',
    description=description,
    epilog='--config.section.key=value overrides a key of the configuration.',
    allow_abbrev=False,
  )
  result.add_argument('--workdir', help='folder of the run')
  return result


def add_config(options: argparse.ArgumentParser) -> None:
  """Adds `--config`."""
  options.add_argument(
    '--config', required=True, help='configuration: FILE.py or FILE.py:VARIANT'
  )


def add_model(options: argparse.ArgumentParser) -> None:
  """Adds what names a trained model, beside `--workdir`."""
  options.add_argument(
    '--checkpoint',
    help='released checkpoint in place of --workdir: an .npz file, or a folder '
    'or .safetensors file of transformers',
  )
  options.add_argument(
    '--step', help='of the checkpoint: a number or "best"; newest by default'
  )
  options.add_argument(
    '--grid',
    type=grid,
    metavar='ROWSxCOLUMNS',
    help='patches of a released checkpoint, where its file does not tell',
  )
  add_told(options)
  options.add_argument(
    '--classes', help="'imagenet', or a file with their names, one a line"
  )


def add_told(options: argparse.ArgumentParser) -> None:
  """Adds what a CLIP with OpenAI's names needs to be told, see `saved.told`."""
  for name in released.TOLD:
    heads = name.endswith('_heads')
    what = f'attention heads of the {name.partition("_")[0]} tower'
    options.add_argument(
      f'--{name.replace("_", "-")}',
      type=int if heads else str,
      help="of a CLIP with OpenAI's names: "
      + (what if heads else 'quick_gelu for their own'),
    )


def grid(text: str) -> tuple[int, int]:
  """Reads rows and columns of patches, as an option says them."""
  if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} is no grid; write rows and columns, such as 14x14'
    )
  rows, columns = text.split('x')
  return int(rows), int(columns)


def open_model(
  known: argparse.Namespace, overrides: Sequence[str]
) -> trained.Trained:
  """Opens the model that the options of `add_model` name.

  Raises:
    ConfigError: there is none, or the options do not fit it.
  """
  if known.workdir and known.checkpoint:
    raise ConfigError('Give --workdir or --checkpoint, not both.')
  if known.checkpoint:
    path = pathlib.Path(known.checkpoint)
    if not path.exists():
      raise ConfigError(f'--checkpoint={path}: there is no such file.')
  else:
    path = required(known.workdir)
  told = saved.told(known)
  if known.workdir and getattr(known, 'clip', None):
    told = {}  # Of --clip.
  model = trained.load(path, known.step, overrides, known.grid, told)
  if not known.classes:
    return model
  names = _class_names(known.classes)
  if not hasattr(model.task, 'class_names'):
    raise ConfigError(
      f'--classes={known.classes}: a model trained for '
      f"{model.config.task.name} has no classes; predict takes --labels='a|b'."
    )
  count = len(model.task.class_names)
  if len(names) != count:
    raise ConfigError(
      f'--classes={known.classes} names {len(names)} classes, but the model '
      f'has {count}.'
    )
  task = dataclasses.replace(model.task, class_names=names)
  return dataclasses.replace(model, task=task, names_known=True)


def open_clip(known: argparse.Namespace) -> matching.Matcher | None:
  """Opens the model of images and texts that `--clip` names; None without.

  Raises:
    ConfigError: there is none, or the options of `add_told` are of no model.
  """
  told = saved.told(known)
  if known.clip is None:
    if told:
      name = f'--{next(iter(told)).replace("_", "-")}'
      raise ConfigError(f'{name} is of a released CLIP: name it by --clip.')
    return None
  try:
    return matching.Matcher(trained.load(epath.Path(known.clip), told=told))
  except ConfigError as error:
    raise ConfigError(f'--clip={known.clip}: {error}') from error


def add_sampling(options: argparse.ArgumentParser) -> None:
  """Adds how codes of pictures are drawn; see `sampling`."""
  options.add_argument(
    '--temperature', type=float, default=1.0, help='1 by default; 0: likeliest'
  )
  options.add_argument(
    '--top-k', help='likeliest codes to draw from: 64, or a share such as 0.1'
  )
  options.add_argument(
    '--top-p', type=float, help='likeliest codes, with this probability'
  )
  options.add_argument(
    '--guidance',
    type=float,
    help='how far to go beyond no text, such as 2, among what --top-k and '
    '--top-p leave, of which one is needed in practice; needs a run with '
    'task.caption_dropout',
  )


def sampling(known: argparse.Namespace) -> Sampling:
  """Returns how to draw, as the options of `add_sampling` say.

  Raises:
    ConfigError: a number cannot be meant.
  """
  count = share = None
  if known.top_k is not None:
    # 1 is one code, 1.0 is all.
    is_count = known.top_k.isdecimal()
    count = int(known.top_k) if is_count else None
    share = None if is_count else _float(known.top_k)
  chosen = Sampling(
    known.temperature, count, share, known.top_p, known.guidance
  )
  for name, value in chosen._asdict().items():
    if value is None or _can_be_meant(name, value):
      continue
    option = 'top_k' if name == 'top_fraction' else name
    raise ConfigError(
      f'--{option.replace("_", "-")}={getattr(known, option)}: use '
      f'{_SAMPLING[option]}.'
    )
  return chosen


def _float(text: str) -> float:
  """Returns a number, or what is none."""
  try:
    return float(text)
  except ValueError:
    return math.nan


def _can_be_meant(name: str, value: float) -> bool:
  """Returns whether a number is one that codes can be drawn by."""
  try:
    Sampling(**{name: value}).check()
  except ValueError:
    return False
  # Infinity makes logits that are no numbers, and codes are counted in int32.
  return value < (2**31 if name == 'top_k' else math.inf)


def check_seed(seed: int) -> None:
  """Raises ConfigError for what no random numbers can start from."""
  if not 0 <= seed < 2**32:
    raise ConfigError(f'--seed={seed}: use 0 or more, below 2**32.')


def _class_names(name: str) -> tuple[str, ...]:
  """Reads names of classes from a file, or those that we ship."""
  path = resources.files('vit_jax.data') / 'class_names' / f'{name}.txt'
  if name not in _CLASS_NAMES:
    path = pathlib.Path(name)
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(
      f'--classes={name} is neither a file that can be read nor one of '
      f'{", ".join(_CLASS_NAMES)}: {error}'
    ) from error
  return tuple(line.strip() for line in text.splitlines() if line.strip())


def split(
  options: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the known options, and the overrides of the configuration.

  Raises:
    ConfigError: an option is not known, or an override has no value.
  """
  # What has a space and is not known to argparse, it takes for a file. So
  # overrides, such as of preprocessing, and misspelt options never get there.
  overrides = [a for a in arguments if a.startswith('--config.')]
  others = [a for a in arguments if not a.startswith('--config.')]
  for override in overrides:
    if '=' not in override:
      raise ConfigError(
        f"{override!r} has no value: write it with a '=', as in "
        f'{override}=VALUE.'
      )
  names = ['--help', *re.findall(r'--[\w-]+', options.format_usage())]
  for argument in others:
    name = argument.partition('=')[0]
    if name.startswith('--') and name not in ('--', *names):
      hint = did_you_mean(name, names)
      raise ConfigError(f'There is no option {argument!r}.{hint}')
  return options.parse_args(others), overrides


def given(
  options: argparse.ArgumentParser, arguments: Sequence[str]
) -> set[str]:
  """Returns the destinations of the options that were given, by `split`'s.

  One that was given with its default is among them.
  """
  others = [a for a in arguments if not a.startswith('--config.')]
  names, nothing = vars(options.parse_args([])), object()
  # A default is only set where nothing is.
  unset = argparse.Namespace(**dict.fromkeys(names, nothing))
  found = vars(options.parse_args(others, unset))
  return {name for name, value in found.items() if value is not nothing}


def check_writable(option: str, path: pathlib.Path | None) -> None:
  """Raises ConfigError now, if a file could not be written at the end.

  Args:
    option: that names the file.
    path: of the file; None where none was asked for.
  """
  if path is None:
    return
  # A link to nothing is not ours to remove.
  new = not os.path.lexists(path)
  try:
    with path.open('a'):
      pass
  except OSError as error:
    raise ConfigError(
      f'{option}={path} cannot be written: {error.strerror}. Name a file in a '
      'folder that exists and that you may write to.'
    ) from error
  if new:
    path.unlink()


def check_folder(out: pathlib.Path, folder: pathlib.Path) -> None:
  """Raises ConfigError now, if a folder could not be written to later.

  Args:
    out: what `--out` was given.
    folder: the same, or one in it; it need not be there yet.
  """
  folder = folder.absolute()
  there = next(x for x in (folder, *folder.parents) if os.path.exists(x))
  if not there.is_dir():
    raise ConfigError(
      f'--out={out} cannot be written to: {there} is a file. Name a folder; it '
      'need not be there yet.'
    )
  if not os.access(there, os.W_OK | os.X_OK):
    raise ConfigError(
      f'--out={out} cannot be written to: {there} may not be changed by you. '
      'Name another folder.'
    )


def tell_broken(console: Console) -> Callable[[str, str], None]:
  """Returns what prints the name of a broken record, and what is wrong."""

  def say(name: str, reason: str) -> None:
    text = f'skipped, cannot be read: {name} ({reason})'
    console.print(text, highlight=False, markup=False)

  return say


def make_console(stderr: bool = False) -> Console:
  """Returns what prints texts as they are, even `[a-f]` and `:smile:`."""
  return Console(stderr=stderr, soft_wrap=True, markup=False, emoji=False)


def required(workdir: str | None) -> epath.Path:
  """Returns the workdir; ConfigError if it was not given, or is empty."""
  if not workdir:
    raise ConfigError(
      '--workdir is missing: the folder of the run, such as '
      '--workdir=runs/digits.'
    )
  return epath.Path(workdir)


def run(main: Callable[[Sequence[str], Console], None]) -> None:
  """Calls `main` with the arguments; ends the process with its exit code."""
  console, errors = make_console(), make_console(stderr=True)
  code = DONE
  try:
    main(sys.argv[1:], console)
  except ConfigError as error:
    errors.print(f'error: {error}', highlight=False, markup=False)
    code = REFUSED
  except (TrainingError, BrokenDataError, CheckpointError) as error:
    errors.print(f'error: {error}', highlight=False, markup=False)
    code = STOPPED
  except Preempted as preempted:
    errors.print(
      f'Stopped after step {preempted.args[0]:,}, everything is saved. The '
      'same command goes on from there.'
    )
    code = PREEMPTED
  except KeyboardInterrupt:
    code = INTERRUPTED
  except Exception:
    if not jax.distributed.is_initialized():
      raise
    traceback.print_exc()
    code = CRASHED
  if code not in (DONE, PREEMPTED) and jax.distributed.is_initialized():
    # At exit JAX would wait for the other processes, which wait for this one;
    # after five minutes it aborts, and the code is lost.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
