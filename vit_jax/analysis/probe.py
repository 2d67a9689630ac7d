"""What a trained model holds and computes, brought to the host."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import ConfigError
from vit_jax.models import layers, position
from vit_jax.models.clip import CLIP
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import rules, trained

# Images of one call of the model.
_BATCH = 16


def tower(model: trained.Trained) -> tuple[Any, Mapping[str, Any]]:
  """Returns the module that sees images, and its variables.

  It is the whole model, or the image tower of CLIP.
  """
  module, variables = model.task.model, model.variables
  if isinstance(module, CLIP):
    variables = {name: tree['image'] for name, tree in variables.items()}
    module = module.image
  return module, variables


def apply(
  model: trained.Trained, images: np.ndarray, reduce: Callable[[Any], Any]
) -> np.ndarray:
  """Applies a model to images, and a function to its intermediates.

  What the function does not use is not computed.

  Args:
    model: to look into.
    images: [images, height, width, channels].
    reduce: gives [batch, ...] of the intermediates of a batch.

  Returns:
    [images, ...].
  """
  module, tower_variables = tower(model)

  @jax.jit
  def compute(variables, image):
    _, intermediates = module.apply(variables, image)
    return layers.constrain(reduce(intermediates))

  size, parts = model.whole_batch(min(_BATCH, len(images))), []
  for start in range(0, len(images), size):
    chunk = images[start : start + size]
    # Of one shape, the last as well, so that it is compiled once.
    padding = [(0, size - len(chunk)), (0, 0), (0, 0), (0, 0)]
    with jax.set_mesh(model.mesh):
      batch = mesh_lib.to_mesh({'image': np.pad(chunk, padding)}, model.mesh)
      result = compute(tower_variables, batch['image'])
    parts.append(jax.device_get(result)[: len(chunk)])
  return np.concatenate(parts)


def shapes(model: trained.Trained) -> Mapping[str, Any]:
  """Returns the shapes of a model's intermediates for one image."""
  image = model.task.batch_spec(1)['image']
  module, variables = tower(model)
  _, result = jax.eval_shape(module.apply, variables, image)
  return result


def attention_grid(model: trained.Trained) -> tuple[int, int]:
  """Returns rows and columns of patches; ConfigError without attention."""
  found = shapes(model)
  blocks = found.get('blocks', {}).values()
  if not any('attention_weights' in block for block in blocks):
    raise ConfigError('This model has no attention to look at.')
  return found['patches'].shape[1:3]


def attention_layers(intermediates: Mapping[str, Any]) -> list[jax.Array]:
  """Returns the weights [batch, heads, queries, keys] of each layer."""
  blocks = intermediates['blocks']
  if 'blocks' in blocks:  # Layers in a loop: one array, their axis in front.
    layers = list(blocks['blocks']['attention_weights'])
  else:
    layers = [blocks[name]['attention_weights'] for name in sorted(blocks)]
  return [weights.astype(jnp.float32) for weights in layers]


def filters(model: trained.Trained) -> np.ndarray:
  """Returns what sees the pixels: [height, width, channels, filters]."""
  params = rules.by_path(tower(model)[1]['params'])
  # Of a ResNet of CLIP; of a hybrid and other ResNets; of all others.
  names = ('stem/conv_1/kernel', 'backbone/root/kernel', 'embedding/kernel')
  return jax.device_get(next(params[x] for x in names if x in params))


def position_tables(model: trained.Trained) -> np.ndarray:
  """Returns the position embeddings of patches.

  Returns:
    [tables, rows, columns, width]; one table, or one for each layer.

  Raises:
    ConfigError: the model has none.
  """
  module, _ = tower(model)
  kind = getattr(module, 'position', 'none')
  if kind in ('none', 'relative'):
    raise ConfigError(
      f'This model has no embedding of where a patch is (position: {kind}).'
    )
  grid = shapes(model)['patches'].shape[1:3]
  if kind == 'sincos_2d':
    width = module.sizes['width']
    return position.sincos_2d(grid, width).reshape(1, *grid, width)
  if kind == 'learned':
    table = _stacked(model, 'position/embedding')
    return table[:, -grid[0] * grid[1] :].reshape(len(table), *grid, -1)
  row, column = (_stacked(model, f'position/{x}') for x in ('row', 'column'))
  row = np.repeat(row[:, :, None], grid[1], axis=2)
  column = np.repeat(column[:, None], grid[0], axis=1)
  return np.concatenate([row, column], axis=-1)


def _stacked(model: trained.Trained, name: str) -> np.ndarray:
  """Returns the matrices [n, length, width] of all layers with that name."""
  params = rules.by_path(tower(model)[1]['params'])
  found = [params[path] for path in sorted(params) if path.endswith(name)]
  # Of layers that run in a loop, one array holds all.
  parts = [x.reshape(-1, *x.shape[-2:]) for x in jax.device_get(found)]
  return np.concatenate(parts)
