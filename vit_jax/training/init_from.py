"""Where parameters start: fresh, or from another run."""

import pathlib
from typing import Any

import jax

from vit_jax.config import ConfigError
from vit_jax.training import rules, trained
from vit_jax.training.run import Run
from vit_jax.training.state import State


def initial_state(run: Run) -> State:
  """Allocates the state of a new run.

  Raises:
    ConfigError: `config.init` names no run, or parameters do not fit.
  """
  state = run.init()
  if not run.config.init.workdir:
    return state
  fresh = tuple((pattern, True) for pattern in run.config.init.fresh)
  rules.check(fresh, rules.by_path(state.params), 'config.init.fresh')
  workdir = pathlib.Path(run.config.init.workdir)
  try:
    tree, _, _ = trained.read_parameters(workdir)
  except FileNotFoundError as error:
    raise ConfigError(f'config.init.workdir: {error}') from error
  loaded = rules.by_path(tree)

  def pick(path: str, leaf: jax.Array) -> jax.Array:
    if rules.first_match(fresh, path, False):
      return leaf
    return jax.device_put(loaded[path].astype(leaf.dtype), leaf.sharding)

  _check_fit(state.params, loaded, fresh)
  params = rules.map_by_path(pick, state.params)
  average = state.average
  if average is not None:
    average = jax.tree.map(lambda leaf: leaf.copy(), params)
  return state.replace(params=params, average=average)


def _check_fit(params: Any, loaded: dict[str, Any], fresh: tuple) -> None:
  """Raises ConfigError with a table if what is loaded does not fit."""
  wanted = {
    path: tuple(leaf.shape)
    for path, leaf in rules.by_path(params).items()
    if not rules.first_match(fresh, path, False)
  }
  got = {path: tuple(leaf.shape) for path, leaf in loaded.items()}
  wrong = [path for path in wanted if wanted[path] != got.get(path)]
  if wrong:
    lines = [
      f'  {path}: expected {wanted[path]}, has {got.get(path, "nothing")}'
      for path in wrong[:20]
    ]
    raise ConfigError(
      f'{len(wrong)} parameters of config.init.workdir do not fit:\n'
      + '\n'.join(lines)
      + '\nName those that should start fresh in config.init.fresh, such as '
      "('head/.*',)."
    )
