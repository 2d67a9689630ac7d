"""What a model can be asked to show, and what it answers.

Each answer is a picture, the numbers behind it and how to read it. What is
computed is in `attention` and `embeddings`, how it is drawn in `drawing`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vit_jax.analysis import attention, drawing, embeddings, probe
from vit_jax.analysis.examples import Examples
from vit_jax.config import ConfigError
from vit_jax.training import trained

# As many as the ViT paper shows, figure 7.
_FILTERS = 28
# Images that others are found for, and how many others.
_QUERIES, _NEIGHBOURS = 6, 7


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a model shows.

  Attributes:
    reading: how to read the picture.
    figure: the picture.
    numbers: behind it.
    each: pictures of single images, where there are some.
  """

  reading: str
  figure: Figure
  numbers: Mapping[str, np.ndarray]
  each: tuple[Figure, ...] = ()


def filters(model: trained.Trained) -> Answer:
  """Shows the principal components of the first layer's filters."""
  kernel = probe.filters(model)
  components, shares = embeddings.principal_filters(kernel, _FILTERS)
  height, width, _, number = kernel.shape
  return Answer(
    f'Principal components of the {number} filters of {height} x {width} '
    'pixels that the model sees images with, the most important first; grey '
    'is a weight of zero. Trained filters are smooth: flat ones, edges and '
    'waves of several directions and colours. Untrained ones look like noise.',
    drawing.filters(components, shares),
    {'components': components, 'share_of_variance': shares},
  )


def positions(model: trained.Trained) -> Answer:
  """Shows how alike the position embeddings of patches are."""
  tables = probe.position_tables(model)
  layers, *grid, width = tables.shape
  flat = tables.reshape(layers, -1, width)
  similarity = embeddings.cosine_similarity(flat, flat)
  first = ' Drawn is the first layer; the file has all.' if layers > 1 else ''
  return Answer(
    'Each tile is one patch, at its place in the image, and shows how alike '
    'its position embedding is to those of all patches. A bright spot that '
    'moves along with the tile says that the model knows which patches are '
    'close to each other; a bright cross, that it knows rows and columns.'
    f'{first}',
    drawing.positions(similarity[0].reshape(*grid, *grid)),
    {'similarity': similarity.reshape(layers, *grid, *grid)},
  )


def attention_distance(model: trained.Trained, examples: Examples) -> Answer:
  """Shows how far every head of every layer attends."""
  grid, (height, width, _) = probe.attention_grid(model), model.task.image_shape
  spacing = (height / grid[0], width / grid[1])
  apart = attention.grid_distances(grid, spacing)

  def reduce(intermediates):
    layers = probe.attention_layers(intermediates)
    if not layers:
      raise ConfigError('Patches of this model do not attend to each other.')
    return jnp.stack([attention.mean_distance(x, apart) for x in layers], 1)

  distances = probe.apply(model, examples.inputs, reduce)
  return Answer(
    'Each dot is a head: how far away the patches are that it attends to, in '
    f'pixels, weighted by attention, on average over {len(distances)} images '
    f'of {height} x {width}. At the dashed line all patches are attended to '
    'alike. Low dots in the first layers are heads that look at the '
    'neighbourhood, as convolutions do. The class token is left out.',
    drawing.distances(distances.mean(0), float(apart.mean()), 'pixels'),
    {
      'mean': distances.mean(0),
      'each_image': distances,
      'all_alike': apart.mean(),
    },
  )


def attention_map(model: trained.Trained, examples: Examples) -> Answer:
  """Shows which patches have reached the end through attention."""
  grid, (module, _) = probe.attention_grid(model), probe.tower(model)

  def reduce(intermediates):
    reader = probe.reader(module, intermediates)
    # TPUs multiply float32 as bfloat16 unless they are told not to.
    with jax.default_matmul_precision('highest'):
      layers = probe.attention_layers(intermediates)
      through = attention.rollout(layers, reader)
    return attention.evened(through, grid[0] * grid[1])

  maps = probe.apply(model, examples.inputs, reduce).reshape(-1, *grid)
  each = map(drawing.attention_map, examples.names, examples.pixels, maps)
  return Answer(
    'Beside each image: what of it reaches '
    f'{_reader(model)} through the attention of all layers (rollout). The '
    'brighter a place, the more it was attended to. This says where the model '
    'looks, not why it decides: rollout knows neither classes nor signs.',
    drawing.pairs(examples.pixels, drawing.overlaid(examples.pixels, maps)),
    {'maps': maps, 'names': np.array(examples.names)},
    tuple(each),
  )


def attention_heads(model: trained.Trained, examples: Examples) -> Answer:
  """Shows what every head of every layer attends to in an image."""
  grid = probe.attention_grid(model)

  patches = grid[0] * grid[1]
  pools = 'pooling_weights' in probe.shapes(model)

  def reduce(intermediates):
    layers = probe.attention_layers(intermediates)
    rows = [attention.seen(x, patches) for x in layers]
    if pools:
      rows.append(attention.evened(intermediates['pooling_weights'], patches))
    return jnp.stack(rows, 1)

  maps = probe.apply(model, examples.inputs, reduce)
  maps = maps.reshape(*maps.shape[:3], *grid)
  each = tuple(drawing.heads(*one, pools) for one in zip(examples.pixels, maps))
  reader = 'the class token' if _class_token(model) else 'the average patch'
  last = ' The last row is the attention that pools.' if pools else ''
  return Answer(
    f'Which patches {reader} attends to, by layer (row) and head '
    f'(column); each tile is as bright as it can be.{last} Heads of a layer '
    'that differ share the work. A tile that is the same for every image has '
    'learned a place, not what is there.',
    each[0],
    {'maps': maps, 'names': np.array(examples.names)},
    each,
  )


def _class_token(model: trained.Trained) -> bool:
  module, _ = probe.tower(model)
  return getattr(module, 'pooling', None) == 'token'


def _reader(model: trained.Trained) -> str:
  """Says what `probe.reader` takes for the reader of the patches."""
  if _class_token(model):
    return 'the class token'
  if 'pooling_weights' in probe.shapes(model):
    return 'the vector that the attention of the head pools,'
  return 'the mean of all patches (there is no class token)'


def neighbours(model: trained.Trained, examples: Examples) -> Answer:
  """Shows which images the model finds most alike."""
  if len(examples.names) < 2:
    raise ConfigError('One image alone has no neighbours: give more.')
  features = probe.apply(model, examples.inputs, probe.feature)
  order, similarity = embeddings.nearest(features, _QUERIES, _NEIGHBOURS)
  return Answer(
    f'Each row begins with an image, and those of the other {len(features) - 1}'
    ' follow whose features are most like its own, with the cosine similarity. '
    'What the images of a row have in common is what the model goes by.',
    drawing.neighbours(examples.pixels, order, similarity),
    {
      'order': order,
      'similarity': similarity,
      'features': features,
      'names': np.array(examples.names),
    },
  )


def features(model: trained.Trained, examples: Examples) -> Answer:
  """Shows the features of patches as colours."""
  probe.grid(probe.shapes(model))  # Raises where there is none.
  found = probe.apply(model, examples.inputs, probe.places)
  colours = embeddings.as_colours(found)
  return Answer(
    'Beside each image: the features of its patches after the last layer. '
    'Their first three principal components, over all these images together, '
    'are red, green and blue: patches of one colour mean the same to the '
    'model, within an image and between images.',
    drawing.pairs(examples.pixels, drawing.blocky(colours, examples.pixels)),
    {'colours': colours, 'features': found, 'names': np.array(examples.names)},
  )


class Question(NamedTuple):
  """What can be asked.

  Attributes:
    answer: who answers.
    title: of the picture.
    examples: how many images or texts it is made of; 0 for none.
  """

  answer: Callable[..., Answer]
  title: str
  examples: int


QUESTIONS = {
  'filters': Question(filters, 'Filters of the first layer', 0),
  'positions': Question(positions, 'Similarity of position embeddings', 0),
  'attention-distance': Question(
    attention_distance, 'Mean attention distance', 128
  ),
  'attention-map': Question(attention_map, 'Attention through all layers', 16),
  'attention-heads': Question(attention_heads, 'Attention of every head', 4),
  'neighbours': Question(neighbours, 'Nearest images', 512),
  'features': Question(features, 'Features of patches', 16),
}
