"""What the entry points share: options, exit codes, errors without traces."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from vit_jax.config import ConfigError, did_you_mean
from vit_jax.data.pipeline import BrokenDataError
from vit_jax.training.loop import Preempted, TrainingError

# Exit codes. A supervisor should start again after anything but these, and
# after PREEMPTED; the others would only happen again.
DONE = 0
REFUSED = 2  # The configuration or the request cannot work.
STOPPED = 3  # The data or the training is broken: not finite, too many files.
PREEMPTED = 75  # Asked to stop, everything saved: start again to go on.


def parser(description: str, prog: str) -> argparse.ArgumentParser:
  """Returns a parser that knows `--workdir`."""
  result = argparse.ArgumentParser(
    prog=f'python -m {prog}',
    description=description,
    epilog='--config.section.key=value overrides a key of the configuration.',
    allow_abbrev=False,
  )
  result.add_argument('--workdir', type=pathlib.Path, help='folder of the run')
  return result


def add_config(options: argparse.ArgumentParser) -> None:
  """Adds `--config`."""
  options.add_argument(
    '--config', required=True, help='configuration: FILE.py or FILE.py:VARIANT'
  )


def split(
  options: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Returns the known options, and the overrides of the configuration."""
  known, rest = options.parse_known_args(arguments)
  for argument in rest:
    if not argument.startswith('--config.'):
      names = [name for a in options._actions for name in a.option_strings]
      hint = did_you_mean(argument.partition('=')[0], names)
      raise ConfigError(f'There is no option {argument!r}.{hint}')
  return known, rest


def required(workdir: pathlib.Path | None) -> pathlib.Path:
  """Returns the workdir; ConfigError if it was not given."""
  if workdir is None:
    raise ConfigError(
      '--workdir is missing: the folder of the run, such as '
      '--workdir=runs/digits.'
    )
  return workdir


def run(main: Callable[[Sequence[str], Console], None]) -> None:
  """Calls `main` with the arguments; ends the process with its exit code."""
  console = Console(soft_wrap=True)
  errors = Console(stderr=True, soft_wrap=True)
  code = DONE
  try:
    main(sys.argv[1:], console)
  except ConfigError as error:
    errors.print(f'error: {error}', highlight=False, markup=False)
    code = REFUSED
  except (TrainingError, BrokenDataError) as error:
    errors.print(f'error: {error}', highlight=False, markup=False)
    code = STOPPED
  except Preempted as preempted:
    errors.print(
      f'Stopped after step {preempted.args[0]:,}, everything is saved. The '
      'same command goes on from there.'
    )
    code = PREEMPTED
  sys.exit(code)
