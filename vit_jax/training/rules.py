"""Rules that name parameters: the first regular expression that matches wins.

Sharding, learning rates, weight decay and freezing are all told in this way.
A parameter's path joins the names on the way to it with slashes, such as
`encoder/block_00/mlp/up/kernel`; a rule has to match all of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from vit_jax import config as config_lib

_LINES_SHOWN = 20


def path_of(keys: Sequence[Any]) -> str:
  """Joins the keys that JAX gives for a leaf of a tree."""
  names = (
    getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', None)))
    for key in keys
  )
  return '/'.join(map(str, names))


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_of(keys): leaf for keys, leaf in leaves}


def map_by_path(function: Callable, tree: Any, *others: Any) -> Any:
  """Applies `function(path, leaf, *leaves of the other trees)` everywhere."""
  return jax.tree_util.tree_map_with_path(
    lambda keys, *leaves: function(path_of(keys), *leaves), tree, *others
  )


def first_match(rules: Sequence[tuple[str, Any]], path: str, default: Any):
  """Returns what the first rule that matches `path` says."""
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  return default


def check(rules: Sequence, paths: Mapping[str, Any], where: str) -> None:
  """Raises ConfigError for a rule that is malformed or names no parameter."""
  for rule in rules:
    is_pair = isinstance(rule, (list, tuple)) and len(rule) == 2
    if not is_pair or not isinstance(rule[0], str):
      raise config_lib.ConfigError(
        f'{where} has the rule {rule!r}; a rule is a pair of a regular '
        "expression and a value, such as ('head/.*', 10.0)."
      )
    try:
      used = any(re.fullmatch(rule[0], path) for path in paths)
    except re.error as error:
      raise config_lib.ConfigError(
        f'{where}: {rule[0]!r} is not a regular expression: {error}.'
      ) from error
    if not used:
      raise config_lib.ConfigError(
        f'{where}: no parameter matches {rule[0]!r} as a whole.'
        + config_lib.did_you_mean(rule[0], list(paths)[:40])
      )


def misfits(
  expected: Mapping[str, tuple], found: Mapping[str, tuple]
) -> list[str]:
  """Returns a line for each path whose shapes differ, or that one side lacks.

  Args:
    expected: shapes by path.
    found: the same of what was read.
  """
  lines = [
    f'  {path}: expected {expected.get(path, "nothing")}, '
    f'found {found.get(path, "nothing")}'
    for path in sorted({*expected, *found})
    if expected.get(path) != found.get(path)
  ]
  if len(lines) > _LINES_SHOWN:
    more = len(lines) - _LINES_SHOWN
    lines[_LINES_SHOWN:] = [f'  ... and {more} more']
  return lines


def shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the leaves of a tree by their path."""
  return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
