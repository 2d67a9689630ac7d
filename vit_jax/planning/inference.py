"""How many images of which size fit one device, and how fast they are.

As in the ViT paper's appendix on computational costs (arXiv:2010.11929): speed
and largest batch of one core, against the size of the images.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from vit_jax.config import ConfigError
from vit_jax.planning import compilation, tables, topologies, variations
from vit_jax.planning.estimate import Plan
from vit_jax.planning.topologies import Topology
from vit_jax.training import flops, mesh

# About these sizes, in pixels, and the batch whose time is taken.
_SIZES = (64, 128, 224, 384, 512)
_TIMED = 64


@dataclasses.dataclass(frozen=True)
class Resolution:
  """What one device can predict.

  Attributes:
    size: height and width of the images.
    largest: images of the largest batch that fits; 0 if none does.
    plan: of a usual batch.
  """

  size: int
  largest: int
  plan: Plan


def _plan(
  task: Any, topology: Topology, folder: pathlib.Path, images: int
) -> Plan:
  """Compiles predictions for one device of a topology."""
  one = mesh.make(mesh.Settings(), topologies.devices(topology)[:1])

  def placed(tree):
    sharding = NamedSharding(one, PartitionSpec())
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
    )

  with jax.set_mesh(one):
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(task.init, key)
    # A teacher does not predict.
    of_model = {
      name: variables[name]
      for name in ('params', 'batch_stats')
      if name in variables
    }
    arguments = placed((of_model, task.batch_spec(images)['image']))
    lowered = jax.jit(task.predict).lower(*arguments)
    work = flops.count_flops(task.predict, *arguments)
  result, remembered = compilation.remembered(lowered, topology, folder)
  return Plan(
    topology, dict(one.shape), images, 1, work, work, result, remembered
  )


def check(task: Any) -> None:
  """Raises ConfigError for a task whose predictions cannot be planned."""
  if not hasattr(task, 'predict') or not hasattr(task.model, 'sizes'):
    raise ConfigError(
      'Predictions are planned of classification with a ViT or a hybrid, whose '
      f'images may have any size; this is {type(task).__name__} with '
      f'{type(task.model).__name__}. Leave --sweep and --inference out to plan '
      'its training.'
    )


def over_resolutions(
  task: Any,
  topology: Topology,
  folder: pathlib.Path,
  waiting: variations.Waiting,
) -> list[Resolution]:
  """Measures each of some resolutions that the model's patches divide.

  Args:
    task: whose predictions are compiled.
    topology: one of whose devices predicts.
    folder: where results are remembered.
    waiting: tells the person in front of it.
  """
  patch = task.model.sizes.get('patch_size', 1)
  result = []
  for size in sorted({max(1, round(size / patch)) * patch for size in _SIZES}):
    shape = (size, size, task.image_shape[-1])
    resized = dataclasses.replace(task, image_shape=shape)

    def plan(images, resized=resized, size=size):
      with waiting(f'{images:,} images of {size} px'):
        return _plan(resized, topology, folder, images)

    timed = plan(_TIMED)
    start = variations.guess(timed) if timed.result.fits else _TIMED
    most = variations.largest(lambda n, plan=plan: plan(n).result.fits, start)
    result.append(Resolution(size, most, timed))
  return result


def show(title: str, found: Sequence[Resolution]) -> Table:
  """Returns a table of what was found."""
  table = Table(title=title, box=box.SIMPLE, title_justify='left')
  for name in ('px', 'largest batch', 'GFLOP an image', 'images/s', 'MFU'):
    table.add_column(name, justify='right')
  for each in found:
    plan = each.plan
    row = [f'{each.size}', f'{each.largest:,}']
    row.append(tables.number(plan.model_flops / plan.images / 1e9))
    if plan.result.fits:
      row += [tables.number(plan.images_per_s), f'{plan.utilisation:.0%}']
    table.add_row(*row)
  trust = tables.trust(found[0].plan)
  table.caption = f'Speed at a batch of {_TIMED}, {trust}.'
  table.caption_justify = 'left'
  return table


def draw(title: str, found: Sequence[Resolution]) -> Figure:
  """Draws speed and largest batch against the resolution."""
  figure = Figure(figsize=(9, 4), layout='constrained')
  figure.suptitle(title)
  timed = [each for each in found if each.plan.result.fits]
  series = {
    'images a second': [(each.size, each.plan.images_per_s) for each in timed],
    'largest batch': [(each.size, each.largest) for each in found],
  }
  for axes, (name, points) in zip(figure.subplots(1, 2), series.items()):
    axes.plot(*zip(*points), marker='o')
    axes.set(xscale='log', yscale='log', xlabel='pixels', ylabel=name)
    axes.set_xticks([each.size for each in found])
    axes.set_xticklabels([str(each.size) for each in found])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
  return figure


def to_json(found: Sequence[Resolution]) -> list[dict[str, Any]]:
  """Returns every figure with its unit in its name."""
  return [
    {'pixels': each.size, 'largest_batch': each.largest, **each.plan.to_json()}
    for each in found
  ]
