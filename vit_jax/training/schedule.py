"""How the learning rate goes over a run.

Every schedule is a function from the step to a factor of the peak learning
rate. It rises linearly from 0 over `warmup`, then falls in its own way. Its
keyword-only parameters are the keys of `config.schedule`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from vit_jax.config import ConfigError, Duration

Schedule = Callable
ToSteps = Callable[[Duration], int]


def _warmed_up(decay: Schedule, warmup: int, total: int) -> Schedule:
  """Puts a linear warm-up before `decay`, a function of [0, 1] and steps."""
  if warmup > total:
    raise ConfigError(
      f'config.schedule.warmup is {warmup:,} steps, longer than the whole '
      f'run of {total:,}.'
    )

  def schedule(step):
    after = jnp.maximum(jnp.asarray(step, jnp.float32) - warmup, 0)
    progress = jnp.clip(after / max(total - warmup, 1), 0, 1)
    rise = jnp.minimum(1, step / max(warmup, 1)) if warmup else 1.0
    return rise * decay(progress, after)

  return schedule


def constant(
  total: int, to_steps: ToSteps, /, *, warmup: Duration = '0steps'
) -> Schedule:
  """Stays at the peak."""
  return _warmed_up(lambda progress, after: 1.0, to_steps(warmup), total)


def cosine(
  total: int,
  to_steps: ToSteps,
  /,
  *,
  warmup: Duration = '0steps',
  final: float = 0.0,
  over: Duration = '100%',
) -> Schedule:
  """Falls to `final` times the peak along half a cosine (arXiv:1608.03983).

  It is there after `over`, and stays.
  """

  def decay(progress, after):
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return _warmed_up(decay, to_steps(warmup), to_steps(over))


def linear(
  total: int,
  to_steps: ToSteps,
  /,
  *,
  warmup: Duration = '0steps',
  final: float = 0.0,
) -> Schedule:
  """Falls to `final` times the peak along a line."""

  def decay(progress, after):
    return 1 - (1 - final) * progress

  return _warmed_up(decay, to_steps(warmup), total)


def rsqrt(
  total: int,
  to_steps: ToSteps,
  /,
  *,
  warmup: Duration = '0steps',
  timescale: Duration = '10000steps',
  cooldown: Duration = '0steps',
) -> Schedule:
  """Falls with the square root of the step, then linearly to 0.

  Zhai et al., arXiv:2106.04560, section 3.5: the same run can be continued or
  cooled down at any point.
  """
  cooldown_steps, scale = to_steps(cooldown), to_steps(timescale)
  if scale < 1:
    raise ConfigError(
      f'config.schedule.timescale is {timescale!r}, less than one step; '
      "expected more, such as '10000steps'."
    )

  def decay(progress, after):
    factor = (1 + after / scale) ** -0.5
    if not cooldown_steps:
      return factor
    left = total - to_steps(warmup) - after
    return factor * jnp.clip(left / cooldown_steps, 0, 1)

  return _warmed_up(decay, to_steps(warmup), total)


SCHEDULES = {
  'constant': constant,
  'cosine': cosine,
  'linear': linear,
  'rsqrt': rsqrt,
}
