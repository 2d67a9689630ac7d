"""Learning which images and texts belong together (CLIP, SigLIP, LiT)."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from vit_jax.tasks import contrastive_loss, contrastive_report, image_text

Array = jax.Array
Batch = Mapping[str, Array]
# Of images and of texts, each [pairs, width].
Features = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Contrastive(image_text.ImageText):
  """Telling the text of an image, and the image of a text, from all others."""

  # softmax: choosing one of all (CLIP); sigmoid: each pair alone (SigLIP).
  loss_function: Literal['softmax', 'sigmoid'] = 'softmax'
  # Whether similarities pass from device to device and never exist all at
  # once: less memory, more steps; for very large batches.
  ring: bool = False
  # What pairs with the same first caption are to each other: both right, or
  # mistaken for wrong ones.
  duplicates: Literal['positive', 'negative'] = 'positive'

  def __post_init__(self):
    if self.loss_function == 'sigmoid' and self.model.initial_bias is None:
      raise ValueError(
        "loss_function='sigmoid' learns a bias: set model.initial_bias, for "
        'example to -log(batch_size - 1), or -10 as SigLIP.'
      )
    if self.loss_function == 'softmax' and self.model.initial_bias is not None:
      raise ValueError(
        "loss_function='softmax' has no use for a bias: leave out "
        'model.initial_bias.'
      )

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    text = jnp.zeros((1, self.model.text.length), jnp.int32)
    return self.model.init(key, image, text)

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the loss over all pairs of the batch, and metrics of training.

    Args:
      variables: of the model.
      batch: see `batch_spec`.
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to learn statistics of batch norm.
    """
    del step
    inputs = batch['image'], batch['text']
    features, changed = image_text.learn(
      self.model, variables, *inputs, key=key, train=train
    )
    loss, metrics = self.loss_of_features(variables['params'], features, batch)
    return loss, metrics, changed

  def embed(
    self, variables: Mapping[str, Any], batch: Batch, key: Array
  ) -> Features:
    """Returns the features of a batch, or part of one, in training."""
    inputs = batch['image'], batch['text']
    features, _ = image_text.learn(
      self.model, variables, *inputs, key=key, train=True
    )
    return features

  def loss_of_features(
    self, params: Mapping[str, Any], features: Features, batch: Batch
  ) -> tuple[Array, dict[str, Array]]:
    """Returns the loss, and what tells how training goes.

    Args:
      params: of the model, of which only those of the loss are used.
      features: of all pairs of the batch.
      batch: `identity` [pairs], and `truncated` [pairs].

    Returns:
      The loss; and a dict: `image_to_text` and `text_to_image`, the shares that
      find their partner (or one with the same identity) in the batch; `scale`
      (and `bias`) of the similarities; `positive` and `negative`, mean
      similarities of pairs and of others; `duplicates`, the share of pairs that
      are not the first of their identity; `truncated`, of texts that were cut.
      A loss that learned nothing is the logarithm of the batch size.
    """
    identity = batch['identity']
    scalars = [params['logit_scale']]
    if self.loss_function == 'sigmoid':
      scalars.append(params['logit_bias'])
    matching = identity if self.duplicates == 'positive' else None
    loss = self._loss_function()(*features, *scalars, matching)
    metrics = {
      'scale': contrastive_loss.similarity_scale(params['logit_scale']),
      'truncated': batch['truncated'].mean(),
    }
    if self.loss_function == 'sigmoid':
      metrics['bias'] = params['logit_bias']
    if not self.ring:  # All similarities of the batch exist anyway.
      metrics |= _of_similarities(*features, identity)
    return loss, metrics

  def _loss_function(self) -> Callable:
    losses = {
      ('softmax', False): contrastive_loss.softmax_loss,
      ('softmax', True): contrastive_loss.ring_softmax_loss,
      ('sigmoid', False): contrastive_loss.sigmoid_loss,
      ('sigmoid', True): contrastive_loss.ring_sigmoid_loss,
    }
    return losses[self.loss_function, self.ring]

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns what each pair of a batch finds among the others of it, [pairs].

    `image_to_text` and `text_to_image` are 1 where the best match is right;
    `similarity` is that of the pair itself. The first two depend on the size of
    the batch; `vit_jax.evaluation.retrieval` looks at all of a data set.
    """
    (image, text), _ = self.model.apply(
      variables, batch['image'], batch['text']
    )
    identity = batch['identity']
    # Padding, which is zero, must not be the best match of anything.
    real = batch['text'].any(axis=1)
    similarity = image @ text.T
    to_text = jnp.where(real[None], similarity, -2).argmax(1)
    to_image = jnp.where(real[:, None], similarity, -2).argmax(0)
    return {
      'image_to_text': (identity[to_text] == identity).astype(jnp.float32),
      'text_to_image': (identity[to_image] == identity).astype(jnp.float32),
      'similarity': jnp.diagonal(similarity),
    }

  def encode_image(
    self, variables: Mapping[str, Any], image: Array
  ) -> tuple[Array, dict[str, Any]]:
    """Returns features [images, width] of unit length, and intermediates."""
    return self.model.apply(variables, image, method='encode_image')

  def encode_text(
    self, variables: Mapping[str, Any], text: Array
  ) -> tuple[Array, dict[str, Any]]:
    """Returns features [texts, width] of unit length, and intermediates."""
    return self.model.apply(variables, text, method='encode_text')

  def pictures(
    self, variables: Mapping[str, Any], batches: Iterable[Batch]
  ) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure of what the test data shows of the model."""
    yield 'matches', contrastive_report.matches(self, variables, batches)


def _of_similarities(
  image: Array, text: Array, identity: Array
) -> dict[str, Array]:
  """Returns metrics that need all similarities of a batch."""
  image, text = jax.lax.stop_gradient((image, text))
  similarity = image @ text.T
  same = identity[:, None] == identity[None]
  first = same.argmax(1) == jnp.arange(len(identity))

  def found(axis):
    best = similarity.argmax(axis)
    return (identity[best] == identity).mean()

  return {
    'image_to_text': found(1),
    'text_to_image': found(0),
    'positive': jnp.diagonal(similarity).mean(),
    'negative': similarity.mean(where=~same),
    'duplicates': 1 - first.mean(),
  }
