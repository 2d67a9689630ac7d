"""What the text tower of a model of images and texts shows.

As `pictures`, of tokens in place of patches.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.analysis import (
  attention,
  drawing,
  embeddings,
  probe,
  text_drawing,
)
from vit_jax.analysis.pictures import Answer, Question
from vit_jax.analysis.text_examples import Texts
from vit_jax.config import ConfigError
from vit_jax.training import trained

# Texts that others are found for, and how many others.
_QUERIES, _NEIGHBOURS = 5, 5


def positions(model: trained.Trained) -> Answer:
  """Shows how alike the position embeddings of tokens are."""
  table = probe.text_positions(model)
  similarity = embeddings.cosine_similarity(table, table)
  return Answer(
    'How alike the position embeddings of two places in a text are. A bright '
    'band along the diagonal says that the model knows which tokens are close '
    'to each other; noise, where no text of training was so long.',
    text_drawing.positions(similarity),
    {'similarity': similarity},
  )


def attention_distance(model: trained.Trained, texts: Texts) -> Answer:
  """Shows how far every head of every layer attends."""
  module, _ = probe.tower(model, 'text')
  places = np.arange(module.length)
  apart = np.abs(places[:, None] - places).astype(np.float32)

  def reduce(intermediates):
    counted = _counted(intermediates['input'])
    layers = probe.attention_layers(intermediates)
    found = [attention.mean_distance(x, apart, counted) for x in layers]
    return jnp.stack(found, 1)

  distances = probe.apply(model, texts.inputs, reduce, 'text')
  alike = np.ones_like(apart)
  alike = (np.tril(alike) if module.causal else alike)[None, None]
  all_alike = attention.mean_distance(alike, apart, _counted(texts.inputs))
  sees = 'earlier tokens' if module.causal else 'tokens'
  return Answer(
    f'Each dot is a head: how many tokens away the {sees} are that it attends '
    f'to, weighted by attention, on average over {len(distances)} texts. At '
    'the dashed line all of them are attended to alike. Low dots are heads '
    'that look at the neighbouring tokens. The start token, where heads with '
    'nothing to look at rest, is left out, and so is padding.',
    drawing.distances(distances.mean(0), float(all_alike.mean()), 'tokens'),
    {
      'mean': distances.mean(0),
      'each_text': distances,
      'all_alike': all_alike.mean(),
    },
  )


def _counted(inputs: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
  """Returns which tokens have a place: those after the start, to the end.

  Args:
    inputs: [texts, length]; the highest id is that of the end of a text.

  Returns:
    bool [texts, length].
  """
  places = np.arange(inputs.shape[1])[None]
  return (places > 0) & (places <= inputs.argmax(1)[:, None])


def attention_map(model: trained.Trained, texts: Texts) -> Answer:
  """Shows which tokens have reached the vector of a text."""
  module, _ = probe.tower(model, 'text')

  def reduce(intermediates):
    reader = probe.reader(module, intermediates)
    with jax.default_matmul_precision('highest'):
      layers = probe.attention_layers(intermediates)
      return attention.rollout(layers, reader)

  shares = probe.apply(model, texts.inputs, reduce, 'text')
  inside = [x[1:end] for x, end in zip(shares, texts.ends)]
  reader = {
    'end': 'the end token, whose output stands for the text',
    'last': 'the last place, whose output stands for the text',
    'map': 'the vector that the attention of the head pools',
  }[module.pooling]
  return Answer(
    f'What of each text reaches {reader}, through the attention of all layers '
    '(rollout). The brighter a token, the more it was attended to; start and '
    'end are left out. This says what the model reads, not what it '
    'concludes; of two tokens alike, the earlier has more ways to be read.',
    text_drawing.heated([x[1:-1] for x in texts.tokens], inside),
    {'shares': shares, 'ends': texts.ends, 'names': np.array(texts.names)},
  )


def attention_heads(model: trained.Trained, texts: Texts) -> Answer:
  """Shows what every token of a text attends to, in every head."""
  causal = probe.tower(model, 'text')[0].causal

  def reduce(intermediates):
    return jnp.stack(probe.attention_layers(intermediates), 1)

  weights = probe.apply(model, texts.inputs, reduce, 'text')
  each = tuple(
    text_drawing.heads(tokens, x[..., : end + 1, : end + 1], causal)
    for tokens, x, end in zip(texts.tokens, weights, texts.ends)
  )
  return Answer(
    'Which token (column of a tile) every token (row) of the text on the left '
    'attends to, by layer and head; each tile is as bright as it can be. A '
    'line beside the diagonal is a head that looks at the token before; a '
    'bright first column, one that rests at the start.',
    each[0],
    {'weights': weights, 'ends': texts.ends, 'names': np.array(texts.names)},
    each,
  )


def neighbours(model: trained.Trained, texts: Texts) -> Answer:
  """Shows which texts the model finds most alike."""
  if len(texts.names) < 2:
    raise ConfigError('One text alone has no neighbours: give more.')
  features = probe.apply(model, texts.inputs, probe.feature, 'text')
  order, similarity = embeddings.nearest(features, _QUERIES, _NEIGHBOURS)
  return Answer(
    f'Below each text in bold, those of the other {len(features) - 1} whose '
    'features are most like its own, with the cosine similarity. What they '
    'have in common is what the model goes by.',
    text_drawing.neighbours(texts.names, order, similarity),
    {
      'order': order,
      'similarity': similarity,
      'features': features,
      'names': np.array(texts.names),
    },
  )


def features(model: trained.Trained, texts: Texts) -> Answer:
  """Shows the features of tokens as colours."""

  def reduce(intermediates):
    return intermediates['encoded'].astype(jnp.float32)

  found = probe.apply(model, texts.inputs, reduce, 'text')
  inside = [x[1 : end + 1] for x, end in zip(found, texts.ends)]
  stacked = embeddings.as_colours(np.concatenate(inside))
  colours = np.split(stacked, np.cumsum([len(x) for x in inside])[:-1])
  return Answer(
    'The features of tokens after the last layer. Their first three principal '
    'components, over all these texts together, are red, green and blue: '
    'tokens of one colour mean the same to the model where they stand.',
    text_drawing.coloured([x[1:] for x in texts.tokens], colours),
    {
      'colours': stacked,
      'features': found,
      'ends': texts.ends,
      'names': np.array(texts.names),
    },
  )


# The names of their files begin with 'text-'.
QUESTIONS = {
  'positions': Question(positions, 'Positions in a text: similarity', 0),
  'attention-distance': Question(
    attention_distance, 'Texts: mean attention distance', 128
  ),
  'attention-map': Question(
    attention_map, 'Texts: attention through all layers', 16
  ),
  'attention-heads': Question(
    attention_heads, 'Texts: attention of every head', 4
  ),
  'neighbours': Question(neighbours, 'Nearest texts', 512),
  'features': Question(features, 'Texts: features of tokens', 16),
}
