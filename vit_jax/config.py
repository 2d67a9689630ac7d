"""Reading and checking a configuration.

A configuration file is a Python file with `get_config(arg)` that returns an
`ml_collections.ConfigDict`. It says what its experiment is about and leaves
the rest to defaults. A *schema* says what there is to say: it mirrors the
configuration, and its leaves are the functions and dataclasses that will use
the values. So there is one rule for what a key may be:

  the keys of a section are the keyword-only parameters of the function (or
  the fields of the dataclass) that the section is given to.

Where all keys of a section have defaults, a value alone sets the first of them:
init='runs/a' says init=dict(path='runs/a').

A key that nothing uses therefore cannot exist: it is an error with "did you
mean", before anything is allocated. Types come from the annotations.
"""

import ast
import copy
import dataclasses
import difflib
import inspect
import pathlib
import re
import runpy
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

REQUIRED = inspect.Parameter.empty
# A length of training with its unit: "300ep", "10000steps", "5%",
# "1e9examples".
Duration = typing.NewType('Duration', str)
_DURATION = re.compile(
  r'([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(ep|steps|%|examples)'
)
# Steps are counted in int32.
_MOST_STEPS = 2**31 - 1


class ConfigError(ValueError):
  """A configuration, or a request, that cannot work; says what to change."""


@dataclasses.dataclass(frozen=True)
class OneOf:
  """A section whose key `name` chooses what uses the rest of its keys.

  Attributes:
    choices: what each name stands for, each any schema of a section.
    shared: takes the keys that every choice has in common, if any.
    supplied: fields that the program fills in, so they are no keys.
  """

  choices: Mapping[str, Any]
  shared: Callable | None = None
  supplied: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Field:
  """One key: its type and its default (REQUIRED where there is none)."""

  kind: Any
  default: Any = REQUIRED


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns the helpful end of the message that `name` is not known."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  listed = ', '.join(known) or 'none'
  return (f' Did you mean {close[0]!r}?' if close else '') + f' Known: {listed}'


def fields_of(user: Callable) -> dict[str, Field]:
  """Returns the keys of the section that `user` takes."""
  hints = typing.get_type_hints(user)
  if dataclasses.is_dataclass(user):
    return {
      field.name: Field(
        hints[field.name],
        REQUIRED if field.default is dataclasses.MISSING else field.default,
      )
      for field in dataclasses.fields(user)
    }
  return {
    name: Field(hints[name], parameter.default)
    for name, parameter in inspect.signature(user).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }


def _keys(section: Mapping, schema: Any, path: str) -> dict[str, Any]:
  """Returns what the schema has at each key of one section."""
  if isinstance(schema, Mapping):
    return dict(schema)
  if not isinstance(schema, OneOf):
    return fields_of(schema)
  names = Literal[tuple(schema.choices)]
  if 'name' not in section:
    raise ConfigError(
      f'{path} has no name. Choose one of {", ".join(schema.choices)}.'
    )
  name = _checked(section['name'], names, f'{path}.name')
  keys = {
    **(fields_of(schema.shared) if schema.shared else {}),
    **_keys(section, schema.choices[name], path),
  }
  for supplied in schema.supplied:
    keys.pop(supplied, None)
  return {**keys, 'name': Field(names)}


def _describe(kind: Any) -> str:
  return str(kind) if typing.get_args(kind) else kind.__name__


def _checked(value: Any, kind: Any, path: str) -> Any:
  """Returns `value` as `kind`, or raises what is wrong with it."""
  if typing.get_origin(kind) is types.UnionType:
    if value is None:
      return None
    kind = next(k for k in typing.get_args(kind) if k is not type(None))
  if typing.get_origin(kind) is Literal:
    if value not in (names := typing.get_args(kind)):
      known = did_you_mean(str(value), map(str, names))
      raise ConfigError(f'{path} is {value!r}.{known}')
    return value
  if kind is Duration:
    if not (isinstance(value, str) and _DURATION.fullmatch(value)):
      raise ConfigError(
        f'{path} is {value!r}, not a length of training with its unit. '
        'Write for example "300ep", "10000steps", "5%" or "1e9examples".'
      )
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is tuple and isinstance(value, list):
    return tuple(map(tuple, value)) if _nested(value) else tuple(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ConfigError(
      f'{path} is {value!r} ({type(value).__name__}), expected '
      f'{_describe(kind)}.'
    )
  return value


def _nested(value: Sequence) -> bool:
  return any(isinstance(item, (list, tuple)) for item in value)


def complete(config: Mapping, schema: Any, path: str = 'config') -> dict:
  """Returns `config` with every default filled in, all of it checked.

  Args:
    config: what was said, nested.
    schema: what can be said: a mapping of schemas, a `OneOf`, a `Field`, or
      the function or dataclass that uses the section.
    path: where in the configuration this is, for messages.

  Raises:
    ConfigError: for an unknown key, a missing one, or a value of a wrong type.
  """
  if isinstance(schema, Field):
    return _checked(config, schema.kind, path)
  if not isinstance(config, (Mapping, ConfigDict)):
    raise ConfigError(f'{path} is {config!r}, expected a section of keys.')
  keys = _keys(config, schema, path)
  for name in config:
    if name not in keys:
      raise ConfigError(
        f'{path}.{name} is not used by anything.{did_you_mean(name, keys)}'
      )
  result = {}
  for name, below in keys.items():
    if name in config:
      result[name] = complete(config[name], below, f'{path}.{name}')
    elif not isinstance(below, Field):
      result[name] = complete({}, below, f'{path}.{name}')
    elif below.default is REQUIRED:
      raise ConfigError(f'{path}.{name} is missing; it has no default.')
    else:
      result[name] = below.default
  return result


def _first_key(schema: Any) -> str | None:
  """Returns the key that stands for a section, if one alone can do so."""
  if isinstance(schema, (Mapping, OneOf)):
    return None
  keys = fields_of(schema)
  if any(field.default is REQUIRED for field in keys.values()):
    return None
  return next(iter(keys))


def _spelled_out(config: dict, schema: Any) -> dict:
  """Returns the configuration with sections where a value stands for one."""
  result = {}
  for name, value in config.items():
    below = schema.get(name) if isinstance(schema, Mapping) else None
    if below is None or isinstance(below, Field):
      result[name] = value
    elif isinstance(value, (Mapping, ConfigDict)):
      result[name] = _spelled_out(value, below)
    else:
      first = _first_key(below)
      result[name] = {first: value} if first else value
  return result


def _key_at(config: Mapping, schema: Any, path: str) -> tuple[str, Any]:
  """Returns the whole path of the key at a dotted path, and its type."""
  at = 'config'
  for name in path.split('.'):
    if isinstance(schema, Field):
      raise ConfigError(f'--{at} is a value; it has no key {name!r}.')
    if not isinstance(config, (Mapping, ConfigDict)):
      raise ConfigError(f'{at} is {config!r}, expected a section of keys.')
    keys = _keys(config, schema, at)
    if name not in keys:
      raise ConfigError(
        f'--{at}.{name} is not a key of the configuration.'
        f'{did_you_mean(name, keys)}'
      )
    at, schema, config = f'{at}.{name}', keys[name], config.get(name, {})
  if not isinstance(schema, Field):
    known = _keys(config, schema, at)
    if first := _first_key(schema):
      return f'{path}.{first}', known[first].kind
    known = ', '.join(known)
    raise ConfigError(f'--{at} is a section; set one of its keys: {known}')
  return path, schema.kind


def _parsed(text: str, kind: Any) -> Any:
  """Reads the text of an override as far as its type asks for."""
  options = typing.get_args(kind) if typing.get_origin(kind) else (kind,)
  if kind is Duration or str in options or typing.get_origin(kind) is Literal:
    if text == 'None' and type(None) in options:
      return None
    return text
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError):
    return text  # The check of types says what is wrong with it.


def _set(config: dict, path: str, value: Any) -> None:
  *sections, last = path.split('.')
  for name in sections:
    config = config.setdefault(name, {})
  config[last] = value


def split_override(argument: str) -> tuple[str, str]:
  """Splits '--config.a.b=value' into 'a.b' and 'value'."""
  match = re.fullmatch(r'--config\.([\w.]+)=(.*)', argument, re.DOTALL)
  if not match:
    raise ConfigError(
      f'{argument!r} is not understood. Options have the form '
      '--config.section.key=value; see --help for the others.'
    )
  return match[1], match[2]


def resolve(
  config: Mapping, overrides: Sequence[str], schema: Any
) -> ConfigDict:
  """Applies overrides, fills in every default and checks all of it.

  Args:
    config: what a configuration file or a finished run says.
    overrides: arguments of the form '--config.section.key=value'.
    schema: see `complete`.

  Returns:
    The locked configuration, in which every key is present.
  """
  as_dict = getattr(config, 'to_dict', lambda: copy.deepcopy(dict(config)))()
  as_dict = _spelled_out(as_dict, schema)
  pairs = [split_override(argument) for argument in overrides]
  # A name decides which other keys there are, so names come first.
  pairs.sort(key=lambda pair: not pair[0].endswith('.name'))
  for path, text in pairs:
    path, kind = _key_at(as_dict, schema, path)
    _set(as_dict, path, _parsed(text, kind))
  return ConfigDict(complete(as_dict, schema)).lock()


def load(spec: str) -> ConfigDict:
  """Runs the configuration file 'path.py' or 'path.py:argument'."""
  path, _, argument = spec.partition(':')
  if not pathlib.Path(path).is_file():
    folder = pathlib.Path(path).parent
    known = [str(file) for file in folder.glob('*.py')]
    raise ConfigError(
      f'There is no configuration file {path!r}.{did_you_mean(path, known)}'
    )
  try:
    get_config = runpy.run_path(path).get('get_config')
  except SyntaxError as error:
    raise ConfigError(f'{path} is not valid Python: {error}') from error
  except Exception as error:
    raise ConfigError(_raised_inside(error, spec, path)) from error
  if not callable(get_config):
    raise ConfigError(f'{path} has no function get_config(arg).')
  if argument and not inspect.signature(get_config).parameters:
    raise ConfigError(
      f'{path} has no variants, so {argument!r} means nothing to it: its '
      f'get_config takes no argument. Write --config={path}.'
    )
  try:
    config = get_config(argument) if argument else get_config()
  except Exception as error:
    raise ConfigError(_raised_inside(error, spec, path)) from error
  if not isinstance(config, (Mapping, ConfigDict)):
    raise ConfigError(
      f'get_config of {path} returns {type(config).__name__}, expected a '
      'ConfigDict.'
    )
  return config


def _raised_inside(error: Exception, spec: str, path: str) -> str:
  """Says what went wrong in a configuration file, and where in it."""
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == path
  ]
  where = f'{path}, line {lines[-1]}' if lines else path
  return f'{spec} cannot be read: {error} ({type(error).__name__} in {where})'


def amount(duration: Duration) -> tuple[float, str]:
  """Splits a duration such as '300ep' into its number and its unit."""
  number, unit = _DURATION.fullmatch(duration).groups()
  return float(number), unit


def to_steps(
  duration: Duration, *, batch_size: int, examples: int, total: int | None
) -> int:
  """Converts a duration to a whole number of steps.

  Args:
    duration: for example '300ep', '10000steps', '5%' or '1e9examples'.
    batch_size: examples of one step.
    examples: examples of one epoch.
    total: steps of the whole run, which '%' is a share of.

  Raises:
    ConfigError: there is no whole to be a share of, or it is far too long.
  """
  number, unit = amount(duration)
  if unit == '%' and total is None:
    raise ConfigError(
      f'config.total is {duration!r}: the whole run cannot be a share of '
      'itself. Give it in ep, steps or examples.'
    )
  steps = {
    'steps': number,
    'ep': number * (examples / batch_size),
    'examples': number * (1 / batch_size),
    '%': (total or 0) * number / 100,
  }[unit]
  if steps > _MOST_STEPS:
    raise ConfigError(
      f'{duration!r} is {steps:.3g} steps; at most {_MOST_STEPS:,} can be '
      'counted. Is it the right unit?'
    )
  return round(steps)
