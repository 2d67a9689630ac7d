"""What a model and its training cost: arithmetic, and accelerator time.

The figures are those that papers print: every token counts in every block,
although a model here leaves out what no output needs (the patches' outputs of
the last block, where the class token is all that is used).
"""

import dataclasses
from typing import Any

import jax
from rich import box
from rich.console import Group
from rich.table import Table

from vit_jax.config import ConfigError
from vit_jax.models.vit import count_parameters
from vit_jax.training import flops

_SECONDS_A_DAY = 24 * 60 * 60
# A device of JAX is one core of these, and a whole chip of later TPUs.
_COUNTED_IN_CORES = ('TPU v2', 'TPU v3')


@dataclasses.dataclass(frozen=True)
class Compute:
  """What one image costs, whatever computes it.

  Attributes:
    parameters: of the model.
    tokens: that enter the blocks, the class token included; None for a model
      without tokens.
    forward_macs: multiplications, each with an addition, of a forward pass.
    needed_macs: those of them that an output needs.
    training_flops: two a multiplication, for three forward passes.
  """

  parameters: int
  tokens: int | None
  forward_macs: int
  needed_macs: int
  training_flops: int


def of_task(task: Any) -> Compute:
  """Counts what one image costs; nothing is computed or allocated.

  Args:
    task: with its model, see `vit_jax.training.build.make_task`.
  """
  variables = jax.eval_shape(task.init, jax.random.key(0))
  params, tokens = variables['params'], None
  if hasattr(task, 'intermediates'):
    image = task.batch_spec(1)['image']
    found = jax.eval_shape(task.intermediates, variables, image)
    tokens = found.get('tokens')
  needed = flops.training_flops(task)
  whole = _with_every_token(task) or needed
  return Compute(
    parameters=count_parameters(params),
    tokens=None if tokens is None else tokens.shape[1],
    forward_macs=whole // 6,
    needed_macs=needed // 6,
    training_flops=whole,
  )


def _with_every_token(task: Any) -> int | None:
  """Returns the FLOPs of training where the last block is like the others.

  That is so where one block runs in a loop; None for models without blocks.
  """
  if not hasattr(task.model, 'scan'):
    return None
  task = dataclasses.replace(task, model=task.model.clone(scan=True))
  return flops.training_flops(task)


def of_run(run: Any, utilisation: float) -> dict[str, Any]:
  """Returns what a run will cost.

  Args:
    run: prepared, see `vit_jax.training.run.prepare`.
    utilisation: share of the peak FLOP/s that the model's own arithmetic
      reaches (MFU, arXiv:2204.02311, appendix B).

  Returns:
    Figures with their units in their names; `days` has, by kind of TPU, how
    many days one core (of v2 and v3) or one chip would take.

  Raises:
    ConfigError: the utilisation is not a share.
  """
  if not 0 < utilisation <= 1:
    raise ConfigError(
      f'--utilisation={utilisation:g} is not a share of the peak: give more '
      'than 0 and at most 1, such as 0.4.'
    )
  compute = of_task(run.task)
  images = run.total_steps * run.config.batch_size
  total = compute.training_flops * images
  return {
    'parameters': compute.parameters,
    'float32_mib': compute.parameters * 4 / 2**20,
    'tokens': compute.tokens,
    'forward_gmacs': compute.forward_macs / 1e9,
    'needed_gmacs': compute.needed_macs / 1e9,
    'training_gflops': compute.training_flops / 1e9,
    'training_images': images,
    'training_exaflops': total / 1e18,
    'utilisation': utilisation,
    'days': {
      kind: {
        'of': 'core' if kind in _COUNTED_IN_CORES else 'chip',
        'peak_tflops': peak / 1e12,
        'days': total / (utilisation * peak) / _SECONDS_A_DAY,
      }
      for kind, peak in flops.PEAK_FLOPS.items()
      if kind.startswith('TPU')
    },
  }


def show(title: str, cost: dict[str, Any]) -> Group:
  """Returns what `of_run` found as tables that fit a terminal."""
  model = Table(title=title, show_header=False, **_STYLE)
  model.add_column(style='bold', no_wrap=True)
  model.add_column(overflow='fold')
  model.add_row('parameters', f'{cost["parameters"]:,}')
  model.add_row('float32 file', f'{cost["float32_mib"]:,.1f} MiB')
  if cost['tokens']:
    model.add_row('tokens', f'{cost["tokens"]:,}')
  forward, needed = cost['forward_gmacs'], cost['needed_gmacs']
  model.add_row(
    'forward',
    f'{forward:,.4g} GMACs an image'
    + (f', {needed:,.4g} of them computed' if needed < forward else ''),
  )
  model.add_row('training', f'{cost["training_gflops"]:,.4g} GFLOP an image')
  model.add_row(
    'whole run',
    f'{cost["training_exaflops"]:,.4g} exaFLOP for '
    f'{cost["training_images"]:,} images',
  )
  time = Table(title=f'Time at {cost["utilisation"]:.0%} of the peak', **_STYLE)
  time.add_column('')
  time.add_column('peak, TFLOP/s', justify='right')
  time.add_column('time', justify='right')
  for kind, row in cost['days'].items():
    days = f'{row["days"]:,.3g}' if row['days'] < 100 else f'{row["days"]:,.0f}'
    time.add_row(kind, f'{row["peak_tflops"]:g}', f'{days} {row["of"]}-days')
  return Group(model, time)


_STYLE = dict(box=box.SIMPLE, title_justify='left')
