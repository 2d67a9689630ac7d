"""What a trained model holds and computes, brought to the host."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vit_jax.config import ConfigError
from vit_jax.evaluation import few_shot
from vit_jax.models import layers, position, transformer
from vit_jax.models.clip import CLIP
from vit_jax.models.dalle import DallE
from vit_jax.models.modified_resnet import ModifiedResNet
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import rules, trained

# Examples of one call of the model.
_BATCH = 16
# The halves of a model of images and texts, by how its task encodes them.
TOWERS = {'image': 'encode_image', 'text': 'encode_text'}
# Where in a model the attention of its pooling is.
_POOLING = ('pooling', 'attention')
# [batch, rows, columns, width]: patches, and the last features of ResNets.
_FEATURE_MAPS = ('patches', 'features', 'stage_4')


def tower(
  model: trained.Trained, name: str = 'image'
) -> tuple[Any, Mapping[str, Any]]:
  """Returns the module that sees images, or texts, and its parameters.

  It is the whole model, that of DALL-E as well, or one of the two towers of
  CLIP.

  Raises:
    ConfigError: the model has no such tower, or cannot be looked into.
  """
  module, params = model.task.model, model.variables['params']
  kind = model.config.model.name
  if not hasattr(model.task, 'intermediates') and not is_decoder(model):
    raise ConfigError(f'A {kind} does not tell what it computes on the way.')
  if isinstance(module, CLIP):
    if not hasattr(model.task, 'encode_text'):
      raise ConfigError(
        f'The towers of {model.config.task.name} cannot be looked into, those '
        'of a contrastive model can.'
      )
    return getattr(module, name), params[name]
  if name != 'image':
    sees = (
      'has no towers' if is_decoder(model) else 'sees images and nothing else'
    )
    raise ConfigError(f'--tower={name}: a {kind} {sees}. Leave it out.')
  return module, params


def is_decoder(model: trained.Trained) -> bool:
  """Returns whether the model continues texts with images, as DALL-E does."""
  return isinstance(model.task.model, DallE)


def _intermediates(
  model: trained.Trained, variables: Mapping[str, Any], inputs: Any, name: str
) -> dict[str, Any]:
  """Returns what a tower computes on the way, with two things more.

  They are `input`, and for models that pool by attention `pooling_weights`
  [batch, heads, tokens]: how much each token is attended to.
  """
  module = model.task.model
  if is_decoder(model):
    text, codes = jnp.split(inputs, [module.text_length], axis=1)
    _, found = module.apply(variables, text, codes)
    return {**found, 'input': inputs}
  method = TOWERS[name] if isinstance(module, CLIP) else None
  (_, found), captured = module.apply(
    variables,
    inputs,
    method=method,
    capture_intermediates=lambda part, called: (
      called == '__call__' and part.path[-2:] == _POOLING
    ),
    mutable=['intermediates'],
  )
  found = {**found, 'input': inputs}
  for call in traverse_util.flatten_dict(dict(captured)).values():
    ((_, inside),) = call
    weights = inside['attention_weights'][:, :, 0]  # There is one query.
    found['pooling_weights'] = weights.astype(jnp.float32)
  return found


def apply(
  model: trained.Trained,
  inputs: np.ndarray,
  reduce: Callable[[Any], Any],
  name: str = 'image',
) -> np.ndarray:
  """Applies a tower, and a function to its intermediates.

  What the function does not use is not computed.

  Args:
    model: to look into.
    inputs: images [images, height, width, channels], or tokens of texts, int32
      [texts, length]; of DALL-E texts and the codes after them, int32 [pairs,
      text + image].
    reduce: gives [batch, ...] of the intermediates of a batch, which are those
      of the tower, `input`, and `pooling_weights` [batch, heads, tokens] of
      models that pool by attention.
    name: of the tower.

  Returns:
    [images or texts, ...].
  """
  return in_batches(
    model,
    inputs,
    lambda *given: reduce(_intermediates(model, *given, name)),
  )


def in_batches(
  model: trained.Trained,
  inputs: np.ndarray,
  function: Callable[[Any, Any], Any],
) -> np.ndarray:
  """Applies a function of variables and inputs to some inputs at a time.

  Args:
    model: whose variables and devices.
    inputs: [n, ...].
    function: from variables and [batch, ...] to [batch, ...].

  Returns:
    [n, ...].
  """

  @jax.jit
  def compute(variables, batch):
    return layers.constrain(function(variables, batch))

  size, parts = model.whole_batch(min(_BATCH, len(inputs))), []
  for start in range(0, len(inputs), size):
    chunk = inputs[start : start + size]
    # Of one shape, the last as well, so that it is compiled once.
    padding = [(0, size - len(chunk))] + [(0, 0)] * (chunk.ndim - 1)
    with jax.set_mesh(model.mesh):
      batch = mesh_lib.to_mesh({'input': np.pad(chunk, padding)}, model.mesh)
      result = compute(model.variables, batch['input'])
    parts.append(jax.device_get(result)[: len(chunk)])
  return np.concatenate(parts)


def shapes(model: trained.Trained, name: str = 'image') -> Mapping[str, Any]:
  """Returns the shapes of a tower's intermediates for one input."""
  tower(model, name)
  inputs = model.task.batch_spec(1)[name]
  return jax.eval_shape(
    lambda *given: _intermediates(model, *given, name), model.variables, inputs
  )


def attention_grid(model: trained.Trained) -> tuple[int, int]:
  """Returns rows and columns of patches; ConfigError without attention."""
  found = shapes(model)
  if not _attends(found) and 'pooling_weights' not in found:
    raise ConfigError('This model has no attention to look at.')
  return grid(found)


def _attends(intermediates: Mapping[str, Any]) -> bool:
  blocks = intermediates.get('blocks', {}).values()
  return any('attention_weights' in block for block in blocks)


def grid(intermediates: Mapping[str, Any]) -> tuple[int, int]:
  """Returns rows and columns of the places of an image, given shapes.

  Raises:
    ConfigError: there are none at the end of the model.
  """
  for name in _FEATURE_MAPS:
    if name in intermediates:
      return intermediates[name].shape[1:3]
  raise ConfigError('This model does not give the features of places.')


def places(intermediates: Mapping[str, Any]) -> jax.Array:
  """Returns features of the last layer, [batch, rows, columns, width]."""
  rows, columns = grid(intermediates)
  found = intermediates.get('encoded')
  if found is None:  # Of ResNets.
    found = next(intermediates[x] for x in _FEATURE_MAPS if x in intermediates)
  else:
    found = found[:, -rows * columns :]
    found = found.reshape(-1, rows, columns, found.shape[-1])
  return found.astype(jnp.float32)


def feature(intermediates: Mapping[str, Any]) -> jax.Array:
  """Returns what inputs are compared by, [batch, width].

  That is what CLIP compares images and texts by, or else what is pooled; the
  mean over tokens where nothing is.
  """
  name = 'projected' if 'projected' in intermediates else 'pooled'
  return few_shot.feature_of(intermediates, name)


def attention_layers(intermediates: Mapping[str, Any]) -> list[jax.Array]:
  """Returns the weights [batch, heads, queries, keys] of each layer."""
  blocks = transformer.unrolled(intermediates.get('blocks', {}))
  layers = [blocks[name] for name in sorted(blocks)]
  return [
    layer['attention_weights'].astype(jnp.float32)
    for layer in layers
    if 'attention_weights' in layer
  ]


def reader(module: Any, intermediates: Mapping[str, Any]) -> jax.Array:
  """Returns what a tower makes one vector of, [batch or 1, tokens].

  It is the share that the output of each token has in the pooled vector. Of
  attention that pools, it is the mean over heads.
  """
  if 'pooling_weights' in intermediates:
    return intermediates['pooling_weights'].mean(1)
  tokens, pooling = intermediates['encoded'].shape[1], module.pooling
  if pooling in ('token', 'last', 'end'):
    chosen = {'token': 0, 'last': tokens - 1}.get(pooling)
    if chosen is None:
      chosen = intermediates['input'].argmax(1)[:, None]
    return (jnp.arange(tokens)[None] == chosen).astype(jnp.float32)
  return jnp.full((1, tokens), 1 / tokens)


def filters(model: trained.Trained) -> np.ndarray:
  """Returns what sees the pixels: [height, width, channels, filters]."""
  params = rules.by_path(tower(model)[1])
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
  if isinstance(module, ModifiedResNet):  # Of what its pooling attends to.
    kind = 'learned'
  if kind in ('none', 'relative'):
    raise ConfigError(
      f'This model has no embedding of where a patch is (position: {kind}).'
    )
  rows_columns = grid(shapes(model))
  if kind == 'sincos_2d':
    width = module.sizes['width']
    table = position.sincos_2d(rows_columns, width)
    return table.reshape(1, *rows_columns, width)
  if kind == 'learned':
    table = _stacked(model, 'position/embedding')
    table = table[:, -rows_columns[0] * rows_columns[1] :]
    return table.reshape(len(table), *rows_columns, -1)
  row, column = (_stacked(model, f'position/{x}') for x in ('row', 'column'))
  row = np.repeat(row[:, :, None], rows_columns[1], axis=2)
  column = np.repeat(column[:, None], rows_columns[0], axis=1)
  return np.concatenate([row, column], axis=-1)


def text_positions(model: trained.Trained) -> np.ndarray:
  """Returns the position embeddings of a text's tokens, [length, width]."""
  (table,) = _stacked(model, 'position/embedding', 'text')
  return table


def _stacked(
  model: trained.Trained, path: str, name: str = 'image'
) -> np.ndarray:
  """Returns the matrices [n, length, width] of all layers with that path."""
  params = rules.by_path(tower(model, name)[1])
  found = [params[x] for x in sorted(params) if x.endswith(path)]
  # Of layers that run in a loop, one array holds all.
  parts = [x.reshape(-1, *x.shape[-2:]) for x in jax.device_get(found)]
  return np.concatenate(parts)
