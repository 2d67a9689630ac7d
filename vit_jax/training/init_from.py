"""Where parameters start: fresh, or from another run."""

import pathlib
from typing import Any

import jax

from vit_jax.config import ConfigError
from vit_jax.training import rules, trained
from vit_jax.training.run import Run
from vit_jax.training.state import State

_NAMES_SHOWN = 20


def initial_state(run: Run) -> State:
  """Allocates the state of a new run.

  Raises:
    ConfigError: `config.init` names no run, or parameters do not fit.
  """
  if not run.config.init.workdir:
    return run.init()
  fresh = tuple((pattern, True) for pattern in run.config.init.fresh)
  try:
    tree, _, _ = trained.read_parameters(pathlib.Path(run.config.init.workdir))
  except FileNotFoundError as error:
    raise ConfigError(f'config.init.workdir: {error}') from error
  loaded = rules.by_path(tree)
  _check_fit(run.state.params, loaded, fresh)

  def pick(path: str, leaf: jax.Array) -> jax.Array:
    if rules.first_match(fresh, path, False):
      return leaf
    return jax.device_put(loaded[path].astype(leaf.dtype), leaf.sharding)

  state = run.init()
  params = rules.map_by_path(pick, state.params)
  average = state.average
  if average is not None:
    average = jax.tree.map(lambda leaf: leaf.copy(), params)
  return state.replace(params=params, average=average)


def _check_fit(params: Any, loaded: dict[str, Any], fresh: tuple) -> None:
  """Raises ConfigError with a table if what is loaded does not fit.

  Parameters that `fresh` names may differ, and be in one of the two only.
  """
  wanted, got = (
    {
      path: tuple(leaf.shape)
      for path, leaf in leaves.items()
      if not rules.first_match(fresh, path, False)
    }
    for leaves in (rules.by_path(params), loaded)
  )
  wrong = [path for path in wanted if wanted[path] != got.get(path)]
  wrong += [path for path in got if path not in wanted]
  if not wrong:
    return
  lines = [
    f'  {path}: this model has {wanted.get(path, "nothing")}, the other run '
    f'has {got.get(path, "nothing")}'
    for path in wrong[:_NAMES_SHOWN]
  ]
  if len(wrong) > _NAMES_SHOWN:
    lines.append(f'  ... and {len(wrong) - _NAMES_SHOWN} more')
  raise ConfigError(
    f'{len(wrong)} parameters of config.init.workdir do not fit:\n'
    + '\n'.join(lines)
    + '\nMake config.model the same, or name those that should start fresh or '
    "be left out in config.init.fresh, such as ('(head|pre_logits)/.*',)."
  )
