"""What a DALL-E shows: of a text, and of the image that it draws after it.

As `pictures`. The code of a place is drawn from the output of the token before
it, so what that token attends to is what the place is drawn from.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.analysis import (
  attention,
  decoder_drawing,
  drawing,
  embeddings,
  probe,
)
from vit_jax.analysis.pair_examples import Pairs
from vit_jax.analysis.pictures import Answer, Question
from vit_jax.models import sparse_attention
from vit_jax.training import trained

# Texts on the sheet of words.
_SHEET = 4


def positions(model: trained.Trained) -> Answer:
  """Shows how alike the embeddings of places are: of text, rows, columns."""
  names = ('text_position', 'row', 'column')
  params = model.variables['params']
  tables = jax.device_get([params[name] for name in names])
  similarity = [embeddings.cosine_similarity(x, x) for x in tables]
  return Answer(
    'How alike the embeddings of two places are: in a text, of two rows and of '
    'two columns of the image. A bright band along the diagonal says that the '
    'model knows which places are close to each other. Places of a text that '
    'no training text has reached are noise.',
    decoder_drawing.positions(similarity),
    dict(zip(('text', 'row', 'column'), similarity)),
  )


def attention_distance(model: trained.Trained, pairs: Pairs) -> Answer:
  """Shows how far places of the image attend, by layer, head and pattern."""
  height, width = pairs.pixels.shape[1:3]
  grid = model.task.model.grid
  spacing = (height / grid[0], width / grid[1])
  apart = attention.grid_distances(grid, spacing)

  def reduce(intermediates):
    layers = probe.attention_layers(intermediates)
    return jnp.stack([attention.mean_distance(x, apart) for x in layers], 1)

  found = probe.apply(model, pairs.inputs, reduce)
  patterns = model.task.model.layer_patterns()
  alike = [
    attention.mean_distance(
      sparse_attention.visible(pattern).astype(np.float32), apart
    )
    for pattern in patterns
  ]
  kinds = [pattern.kind for pattern in patterns]
  return Answer(
    'Each dot is a head: how far away the places of the image are that it '
    'attends to from a place of the image, in pixels, weighted by attention, '
    f'on average over {len(found)} images of {height} x {width}. The colour '
    'behind a layer is its pattern, what of the image it sees: the row before '
    'a place, the column above it, its surroundings, or all before it. At the '
    'dashes all of that is attended to alike. The text is left out.',
    drawing.distances(found.mean(0), np.array(alike), 'pixels', kinds),
    {
      'mean': found.mean(0),
      'each_image': found,
      'all_alike': np.array(alike),
      'patterns': np.array(kinds),
    },
  )


def attention_map(model: trained.Trained, pairs: Pairs) -> Answer:
  """Shows which places of the image each word has a say in."""
  module = model.task.model
  length = 1 + module.text_length  # The start of the stream is one more.
  # Each place is drawn by the token before it.
  drawers = np.eye(length + module.image_length, dtype=np.float32)
  drawers = drawers[None, length - 1 : -1]

  def reduce(intermediates):
    with jax.default_matmul_precision('highest'):
      layers = probe.attention_layers(intermediates)
      through = attention.rollout(layers, drawers)
    return through[:, :, 1:length].swapaxes(1, 2)

  shares = probe.apply(model, pairs.inputs, reduce)
  shares = shares.reshape(*shares.shape[:2], *module.grid)
  maps = [
    attention.more_than_others(x[1 : len(text) - 1])
    for x, text in zip(shares, pairs.tokens)
  ]
  words = [text[1:-1] for text in pairs.tokens]
  each = tuple(
    decoder_drawing.words(*zip(one)) for one in zip(pairs.pixels, words, maps)
  )
  return Answer(
    'Beside each image, for each word of its text, the places that the word '
    'has more of a say in than elsewhere, through the attention of all layers '
    '(rollout): dark where its share among the words is at most its average '
    'over the image, the brighter the further above. A word that names a thing '
    'should light up where the thing is drawn, or just before. This says what '
    'the model reads, not what it concludes.',
    decoder_drawing.words(pairs.pixels[:_SHEET], words[:_SHEET], maps[:_SHEET]),
    {
      'shares': shares,
      'ends': np.array([len(text) - 1 for text in pairs.tokens]),
      'names': np.array(pairs.names),
    },
    each,
  )


def attention_heads(model: trained.Trained, pairs: Pairs) -> Answer:
  """Shows what one place of an image is drawn from, in every head."""
  module = model.task.model
  length = 1 + module.text_length
  places = [_stands_out(x, module.grid) for x in pairs.pixels]

  def of_place(number, place):
    # All places of a large model would be gigabytes.
    return probe.apply(
      model,
      pairs.inputs[number : number + 1],
      lambda found: jnp.stack(
        [x[:, :, length - 1 + place] for x in probe.attention_layers(found)], 1
      ),
    )

  # [pairs, layers, heads, tokens]
  weights = np.concatenate([of_place(*one) for one in enumerate(places)])
  image = weights[..., length:].reshape(*weights.shape[:3], *module.grid)
  seen = np.stack(
    [sparse_attention.visible(x) for x in module.layer_patterns()]
  )[:, length - 1 : -1, length:]
  figures = []
  for number, (place, text) in enumerate(zip(places, pairs.tokens)):
    hidden = ~seen[:, place].reshape(-1, 1, *module.grid)
    figures.append(
      decoder_drawing.heads(
        pairs.pixels[number],
        divmod(place, module.grid[1]),
        np.where(hidden, np.nan, image[number]),
        text,
        _by_token(weights[number].mean(1), len(text), length),
      )
    )
  return Answer(
    'What the framed place of the image is drawn from. Above, which earlier '
    'places its attention goes to, by layer (row) and head (column); each tile '
    'is as bright as it can be, and what a layer does not see is white. Below, '
    'how the attention of each layer, on average over its heads, is shared by '
    'the start of the stream, the tokens of the text, its padding and the '
    'image so far. The place is the one in the lower half that stands out most '
    'from its image.',
    figures[0],
    {
      'weights': weights,
      'places': np.array(places),
      'names': np.array(pairs.names),
    },
    tuple(figures),
  )


def _stands_out(pixels: np.ndarray, grid: tuple[int, int]) -> int:
  """Returns which place of the lower half is least like the whole image."""
  rows, columns = grid
  height, width = pixels.shape[:2]
  tall, wide = height // rows, width // columns
  tiles = pixels[: rows * tall, : columns * wide]
  tiles = tiles.reshape(rows, tall, columns, wide, -1).mean((1, 3))
  apart = np.abs(tiles - np.median(pixels, axis=(0, 1))).sum(-1)
  apart[: rows // 2] = -1
  return int(apart.argmax())


def _by_token(weights: np.ndarray, end: int, length: int) -> np.ndarray:
  """Sums weights of padding, and those of the image.

  Args:
    weights: [layers, tokens].
    end: number of tokens of the text, without its padding.
    length: of the text, the start of the stream included.

  Returns:
    [layers, 1 + end + 2]: the start of the stream, the text, padding, image.
  """
  return np.concatenate(
    [
      weights[:, : 1 + end],
      weights[:, 1 + end : length].sum(1, keepdims=True),
      weights[:, length:].sum(1, keepdims=True),
    ],
    axis=1,
  )


QUESTIONS = {
  'positions': Question(positions, 'Similarity of position embeddings', 0),
  'attention-distance': Question(
    attention_distance, 'Mean attention distance within the image', 64
  ),
  'attention-map': Question(
    attention_map, 'From words to places of the image', 4
  ),
  'attention-heads': Question(
    attention_heads, 'What a place of the image is drawn from', 4
  ),
}
