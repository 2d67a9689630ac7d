"""The folder of a run: it belongs to one run and one configuration."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax import config as config_lib
from vit_jax.config import ConfigError
from vit_jax.training import processes, schema, whole_files

# What may differ from the configuration that a workdir was begun with.
_MAY_CHANGE = (
  'checkpoint', 'data.max_broken', 'data.workers', 'eval', 'log_every',
  'mesh', 'model.image.remat', 'model.remat', 'model.text.remat',
  'optimizer.accumulate', 'total', 'wandb',
)  # fmt: skip


@contextlib.contextmanager
def only_run_in(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a workdir for this run alone, until it ends in whatever way.

  Raises:
    ConfigError: another run holds it, or it cannot be written.
  """
  if not processes.first() or whole_files.on_cloud_storage(workdir):
    yield  # Cloud Storage has no locks.
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / '.lock').open('a')
  except OSError as error:
    raise _not_writable(workdir, error) from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise ConfigError(
        f'Another run is going on in --workdir={workdir}. Wait for it or stop '
        'it, or choose another folder.'
      ) from error
    yield


def write_config(workdir: pathlib.Path, config: Any) -> None:
  """Writes `config.json`, whole or not at all."""
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  try:
    whole_files.write(workdir / 'config.json', text)
  except OSError as error:
    raise _not_writable(workdir, error) from error


def _not_writable(workdir: pathlib.Path, error: OSError) -> ConfigError:
  return ConfigError(f'--workdir={workdir} cannot be written: {error}.')


def check_same_run(before: Mapping, config: Any, workdir: pathlib.Path) -> None:
  """Raises ConfigError if a checkpoint is of a run of another configuration.

  Args:
    before: the configuration in the checkpoint.
    config: of this run.
    workdir: for the message.
  """
  with contextlib.suppress(ConfigError):
    # A key that this version has added was at its default.
    before = config_lib.complete(before, schema.SCHEMA)
  old, new = _flat(before), _flat(config.to_dict())
  different = [
    f'  {key}: was {old.get(key)!r}, is {new.get(key)!r}'
    for key in sorted({*old, *new})
    if old.get(key) != new.get(key) and not key.startswith(_MAY_CHANGE)
  ]
  if different:
    raise ConfigError(
      f'{workdir} holds a run of another configuration:\n'
      + '\n'.join(different)
      + '\nGo on with the old values, or choose another --workdir.'
    )


def _flat(config: Mapping, prefix: str = '') -> dict[str, Any]:
  """Returns values by dotted path, as JSON would give them back."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = json.loads(json.dumps(value))
  return flat


def check_same_data(meta: Mapping, known: Any, workdir: pathlib.Path) -> None:
  """Raises ConfigError if classes, shapes or tokens have changed since.

  Args:
    meta: of a checkpoint.
    known: what the data tells now, see `build.Known`.
    workdir: of the run, for the message.
  """
  now = json.loads(json.dumps(known.meta()))
  for key in now:
    if key in meta and meta[key] != now[key]:
      raise ConfigError(
        f'The {key} of the data is not what {workdir} was trained with: the '
        'data has changed. Bring it back, or choose another --workdir.'
      )
