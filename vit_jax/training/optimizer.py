"""From gradients to updates: optax, put together from the configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from vit_jax.config import ConfigError, Duration
from vit_jax.training import powersgd, rules

MomentDtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True)
class Settings:
  """The keys of `config.optimizer` that all optimizers share."""

  # Peak of the schedule.
  learning_rate: float
  weight_decay: float = 0.0
  # times_learning_rate: each step takes lr * weight_decay off a weight, as
  # in the ViT paper, optax and torch. independent: it takes weight_decay
  # off, times the schedule only, as in big_vision: neither the learning rate
  # nor its rules change that.
  weight_decay_convention: Literal['times_learning_rate', 'independent'] = (
    'times_learning_rate'
  )
  # Longest gradient, by its norm over all parameters; 0 does not clip.
  clip_norm: float = 0.0
  # Micro-batches that a step goes through one after the other; None: as the
  # memory of a device asks for, see `vit_jax.training.defaults`.
  accumulate: int | None = None
  # Decay of the moving average of the parameters, which is then what is
  # evaluated, such as 0.9999; 0 keeps none.
  average: float = 0.0
  # (regular expression, factor) pairs; the first match wins, else 1.
  learning_rate_rules: tuple = ()
  # The same for weight decay, else 0: biases, norms and embeddings.
  weight_decay_rules: tuple = (('.*/kernel', 1.0),)
  # Regular expressions of parameters that stay exactly as they are.
  freeze: tuple = ()
  # Of the gradients of matrices as they are sent along mesh.data, where that
  # leads over slow wires, see `vit_jax.training.powersgd`; 0 sends all of them.
  compression_rank: int = 0
  # Until then they are sent whole: at first they change too fast.
  compression_start: Duration = '0steps'


def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  moment_dtype: MomentDtype = 'float32',
) -> optax.GradientTransformation:
  """Adam; its weight decay is decoupled, as that of most here is.

  Kingma & Ba, arXiv:1412.6980; Loshchilov & Hutter, arXiv:1711.05101. Only
  the first moment is stored as `moment_dtype`: the second needs its range.
  """
  return optax.scale_by_adam(b1, b2, epsilon, mu_dtype=moment_dtype)


def sgd(
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  moment_dtype: MomentDtype = 'float32',
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum."""
  return optax.trace(momentum, nesterov, accumulator_dtype=moment_dtype)


def adafactor(
  *,
  b1: float = 0.9,
  b2_cap: float = 0.999,
  decay_exponent: float = 0.8,
  moment_dtype: MomentDtype = 'bfloat16',
) -> optax.GradientTransformation:
  """Adam with a second moment of rows and columns only.

  Shazeer & Stern, arXiv:1804.04235, in the form of Scaling ViT,
  arXiv:2106.04560, section 3.4: b2 is capped, there is momentum, and updates
  are not scaled with the size of the parameters.
  """

  def decay_rate(step, exponent):
    step = jnp.asarray(step + 1, jnp.float32)
    return jnp.minimum(b2_cap, 1 - step**-exponent)

  factored = optax.scale_by_factored_rms(
    decay_rate=decay_exponent,
    min_dim_size_to_factor=32,
    decay_rate_fn=decay_rate,
  )
  momentum = optax.ema(b1, debias=False, accumulator_dtype=moment_dtype)
  return optax.chain(factored, momentum)


def muon(
  *,
  momentum: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  matrices: tuple = ('.*(attention|mlp)/(query|key|value|out|up|down)/kernel',),
  moment_dtype: MomentDtype = 'float32',
) -> optax.GradientTransformation:
  """Momentum with orthogonal updates for matrices, Adam for all the rest.

  Jordan, kellerjordan.github.io/posts/muon, with the scale of Liu et al.,
  arXiv:2502.16982, section 2.2: an update is as large as AdamW's, so learning
  rate and weight decay mean the same for both.

  Args:
    momentum: of the matrices.
    b1: of Adam, as are `b2` and `epsilon`.
    b2: see `adamw`.
    epsilon: see `adamw`.
    matrices: regular expressions of the parameters that are orthogonalised.
    moment_dtype: of the momentum, and of Adam's first moment.
  """
  chosen = tuple((pattern, 'matrix') for pattern in matrices)

  def kinds(params):
    return rules.map_by_path(
      lambda path, _: rules.first_match(chosen, path, 'other'), params
    )

  def axes(updates):
    return rules.map_by_path(_matrix_axes, updates)

  def scale(update, axes):
    rows, columns = (
      math.prod(update.shape[axis] for axis in side) for side in axes
    )
    return update * (0.2 * max(rows, columns) ** 0.5)

  return optax.partition(
    {
      'matrix': optax.chain(
        optax.contrib.scale_by_muon(
          beta=momentum, mu_dtype=moment_dtype, weight_dimension_numbers=axes
        ),
        optax.stateless(
          lambda updates, _: jax.tree.map(scale, updates, axes(updates))
        ),
      ),
      'other': adamw(b1=b1, b2=b2, epsilon=epsilon, moment_dtype=moment_dtype),
    },
    kinds,
  )


def _matrix_axes(path: str, kernel: Any) -> Any:
  """Returns which axes of a kernel are the rows and columns of its matrix.

  Heads belong to the other side of attention's projections; layers that are
  scanned come first and stay apart.
  """
  axes = tuple(range('/blocks/' in path, kernel.ndim))
  inputs = len(axes) - 1 if path.endswith('/out/kernel') else 1
  return optax.contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])


def lars(
  *,
  momentum: float = 0.9,
  trust_coefficient: float = 1e-3,
  adapted: tuple = ('.*/kernel',),
  moment_dtype: MomentDtype = 'float32',
) -> optax.GradientTransformation:
  """Momentum with updates as long as the weights they change, for huge batches.

  You et al., arXiv:1708.03888, algorithm 1, in the form that BYOL has
  (arXiv:2006.07733, appendix C): weight decay is part of the gradient, see
  `make`. The schedule acts on the momentum, not on what goes into it.

  Args:
    momentum: decay of the sum of updates.
    trust_coefficient: length of an update, in lengths of the weight.
    adapted: regular expressions of the parameters whose updates are made that
      long; those of others stay as they are.
    moment_dtype: of the momentum.
  """
  chosen = tuple((pattern, True) for pattern in adapted)

  def is_adapted(params):
    return rules.map_by_path(
      lambda path, _: rules.first_match(chosen, path, False), params
    )

  return optax.chain(
    optax.masked(
      optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient),
      is_adapted,
    ),
    optax.trace(momentum, accumulator_dtype=moment_dtype),
  )


OPTIMIZERS = {
  'adafactor': adafactor,
  'adamw': adamw,
  'lars': lars,
  'muon': muon,
  'sgd': sgd,
}
# Whose weight decay is a part of the gradient. That of the others is decoupled:
# it comes after them, so that they do not change its length.
_DECAY_IN_GRADIENT = ('lars',)


def decay_times_learning_rate(settings: Any) -> float:
  """Returns the weight decay in the paper's convention."""
  if settings.weight_decay_convention == 'independent':
    return settings.weight_decay / settings.learning_rate
  return settings.weight_decay


def check(settings: Any, params: Any) -> None:
  """Raises ConfigError for rules that cannot be meant."""
  paths = rules.by_path(params)
  independent = settings.weight_decay_convention == 'independent'
  if settings.name in _DECAY_IN_GRADIENT and independent:
    raise ConfigError(
      "config.optimizer.weight_decay_convention is 'independent', but the "
      f'weight decay of {settings.name} is a part of the gradient: leave it '
      "'times_learning_rate'."
    )
  for name in ('learning_rate_rules', 'weight_decay_rules'):
    where, pairs = f'config.optimizer.{name}', getattr(settings, name)
    rules.check(pairs, paths, where)
    for pattern, factor in pairs:
      is_number = isinstance(factor, int | float)
      if not is_number or not 0 <= factor < math.inf:
        raise ConfigError(
          f'{where} gives {pattern!r} the factor {factor!r}, expected a '
          'number: 0 or more.'
        )
  freeze = tuple((pattern, True) for pattern in settings.freeze)
  rules.check(freeze, paths, 'config.optimizer.freeze')


def trainable(settings: Any, params: Any) -> Any:
  """Returns a tree of booleans: False where a parameter is frozen."""
  freeze = tuple((pattern, False) for pattern in settings.freeze)
  return rules.map_by_path(
    lambda path, _: rules.first_match(freeze, path, True), params
  )


def make_exchange(
  settings: Any, replicas: int, to_steps: Callable[[Duration], int]
) -> optax.GradientTransformation | None:
  """Returns what averages gradients over replicas in place of the compiler.

  Args:
    settings: the completed section `config.optimizer`.
    replicas: into how many the devices are split along `data`.
    to_steps: converts durations.

  Returns:
    None where the compiler does it.
  """
  if not settings.compression_rank:
    return None
  return powersgd.power_sgd(
    rank=settings.compression_rank,
    replicas=replicas,
    start=to_steps(settings.compression_start),
  )


def make(settings: Any, schedule, params: Any) -> optax.GradientTransformation:
  """Returns the optimizer of a run.

  Args:
    settings: the completed section `config.optimizer`.
    schedule: from a step to a factor of the learning rate.
    params: the parameters or their shapes, for the rules of freezing.
  """
  shared = {field.name for field in dataclasses.fields(Settings)}
  own = {
    key: value
    for key, value in settings.items()
    if key not in shared and key != 'name'
  }
  decay = decay_times_learning_rate(settings)

  def decayed(path, update, param):
    factor = rules.first_match(settings.weight_decay_rules, path, 0.0)
    return update + decay * factor * param

  def at_own_rate(path, update):
    factor = rules.first_match(settings.learning_rate_rules, path, 1.0)
    return update * factor

  steps, changes = [], []
  if settings.clip_norm:
    steps.append(optax.clip_by_global_norm(settings.clip_norm))
  add_decay = functools.partial(rules.map_by_path, decayed)
  if decay and settings.name in _DECAY_IN_GRADIENT:
    steps.append(optax.stateless(add_decay))
  elif decay:
    changes.append(add_decay)
  steps.append(OPTIMIZERS[settings.name](**own))
  if settings.learning_rate_rules:
    changes.append(
      lambda updates, params: rules.map_by_path(at_own_rate, updates)
    )
  if settings.weight_decay_convention == 'independent':
    changes.reverse()  # Rules of the learning rate do not scale the decay.
  steps += map(optax.stateless, changes)
  steps.append(
    optax.scale_by_learning_rate(
      lambda step: settings.learning_rate * schedule(step)
    )
  )
  optimizer = optax.chain(*steps)
  if not settings.freeze:
    return optimizer
  labels = jax.tree.map(
    lambda train: 'trained' if train else 'frozen',
    trainable(settings, params),
  )
  return optax.partition(
    {'trained': optimizer, 'frozen': optax.set_to_zero()}, labels
  )
