"""Values that change over a run, written as text.

  1 -> 1/16 over 150000steps     along half a cosine
  1 -> 0 over 10% linear         along a line
  1 -> 0.1 over 5ep exponential  by the same factor each step
  6.6                            never

After its duration a value stays what it is.
"""

import dataclasses
import fractions
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vit_jax.config import ConfigError, Duration

_NUMBER = r'[-+.0-9eE/]+'
_RAMP = re.compile(
  rf'(?P<first>{_NUMBER})(?: *-> *(?P<last>{_NUMBER}) +over +'
  r'(?P<duration>[.0-9eE+]+(?:ep|steps|%|examples))(?: +(?P<kind>\w+))?)?'
)
# From the share of the duration that is over, 0..1, to that of the change.
_KINDS = {
  'cosine': lambda x: 0.5 - 0.5 * jnp.cos(jnp.pi * x),
  'linear': lambda x: x,
  'exponential': lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A value that goes from `first` to `last` within `duration`."""

  first: float
  last: float
  duration: Duration | None
  kind: str

  def at(self, step: jax.Array, to_steps: Callable[[Duration], int]):
    """Returns the value at a step.

    Args:
      step: scalar, from 0.
      to_steps: converts durations.
    """
    if self.duration is None:
      return jnp.float32(self.first)
    steps = max(to_steps(self.duration), 1)
    share = _KINDS[self.kind](jnp.clip(step / steps, 0, 1))
    if self.kind == 'exponential':
      return self.first * (self.last / self.first) ** share
    return self.first + (self.last - self.first) * share


def parse(text: str, name: str) -> Ramp:
  """Reads a value as this file's head shows them.

  Args:
    text: such as '1 -> 1/16 over 150000steps'.
    name: of the configuration's key, for messages.

  Raises:
    ConfigError: it cannot be read.
  """
  try:
    match = _RAMP.fullmatch(text.strip())
    first, last, duration, kind = match.groups()
    first = float(fractions.Fraction(first))
    last = first if last is None else float(fractions.Fraction(last))
    kind = kind or 'cosine'
    is_known = kind in _KINDS
  except (AttributeError, ValueError, ZeroDivisionError):
    is_known = False
  if not is_known:
    raise ConfigError(
      f'config.task.{name} is {text!r}, expected a number such as 6.6, or '
      "a change with its duration such as '1 -> 1/16 over 150000steps' or "
      f"'0 -> 6.6 over 5% linear'; kinds: {', '.join(_KINDS)}."
    )
  if kind == 'exponential' and min(first, last) <= 0:
    raise ConfigError(
      f'config.task.{name} is {text!r}: what changes by a factor has to be '
      'above 0 at both ends.'
    )
  return Ramp(first, last, duration, kind)
