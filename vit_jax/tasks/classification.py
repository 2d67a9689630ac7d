"""Learning which of a list of classes an image shows."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

from vit_jax.tasks import classification_report

Array = jax.Array
Batch = Mapping[str, Array]


def mixup(
  image: Array, targets: Array, strength: float, key: Array
) -> tuple[Array, Array]:
  """Mixes each example with its neighbour (Zhang et al., arXiv:1710.09412).

  Args:
    image: [batch, ...].
    targets: [batch, classes].
    strength: parameter of the Beta distribution that the share is drawn
      from, once a batch. The larger part stays with the example itself.
    key: random key.
  """
  share = jax.random.beta(key, strength, strength)
  share = jnp.maximum(share, 1 - share)

  def mix(x):
    return share * x + (1 - share) * jnp.roll(x, 1, axis=0)

  return mix(image), mix(targets)


@dataclasses.dataclass(frozen=True)
class Classification:
  """Classification of images by cross-entropy."""

  reads: ClassVar[str] = 'labels'

  model: nn.Module
  class_names: tuple[str, ...]
  # Height, width and channels of an image.
  image_shape: tuple[int, int, int]
  # softmax: exactly one class is right; sigmoid: each class on its own.
  loss_function: Literal['softmax', 'sigmoid'] = 'softmax'
  # Share of the target that is spread evenly over all classes.
  label_smoothing: float = 0.0
  # Strength of mixup (Beta distribution); 0 does not mix.
  mixup: float = 0.0

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f'label_smoothing is {self.label_smoothing}, expected a share: '
        '0 or more, and less than 1.'
      )
    if not self.mixup >= 0:
      raise ValueError(f'mixup is {self.mixup}, expected 0 or more.')

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples."""
    return {
      'image': jax.ShapeDtypeStruct((size, *self.image_shape), jnp.float32),
      'label': jax.ShapeDtypeStruct((size,), jnp.int32),
    }

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    return self.model.init(key, image)

  def _cross_entropy(self, logits: Array, targets: Array) -> Array:
    """Returns [batch] from [batch, classes]; sigmoid sums over classes."""
    if logits.shape != targets.shape:
      raise ValueError(
        f'the model gives logits of shape {logits.shape}, expected '
        f'{targets.shape} (batch, classes): classification needs one vector '
        "an image, so config.model.pooling must not be 'none'."
      )
    if self.loss_function == 'sigmoid':
      return optax.sigmoid_binary_cross_entropy(logits, targets).sum(-1)
    return optax.softmax_cross_entropy(logits, targets)

  def _learn(
    self, variables: Mapping[str, Any], image: Array, key: Array, train: bool
  ) -> tuple[Array, dict[str, Any]]:
    """Returns logits, and in training the statistics of batch norm after it."""
    learned = ['batch_stats'] if train and 'batch_stats' in variables else []
    (logits, _), changed = self.model.apply(
      variables, image, train=train, rngs={'dropout': key}, mutable=learned
    )
    return logits, changed

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the mean loss over the batch, and metrics of training.

    Args:
      variables: of the model.
      batch: `image` [batch, height, width, channels], `label` [batch].
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to learn statistics of batch norm.
    """
    del step
    image, classes = batch['image'], len(self.class_names)
    mixup_key, dropout_key = jax.random.split(key)
    targets = jax.nn.one_hot(batch['label'], classes)
    if train and self.label_smoothing:
      targets = optax.smooth_labels(targets, self.label_smoothing)
    if train and self.mixup:
      image, targets = mixup(image, targets, self.mixup, mixup_key)
    logits, changed = self._learn(variables, image, dropout_key, train)
    loss = self._cross_entropy(logits, targets).mean()
    right = logits.argmax(-1) == batch['label']
    return loss, {'accuracy': right.mean()}, changed

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns loss and accuracy of each example, [batch]."""
    logits, _ = self.model.apply(variables, batch['image'])
    targets = jax.nn.one_hot(batch['label'], len(self.class_names))
    return {
      'loss': self._cross_entropy(logits, targets),
      'accuracy': (logits.argmax(-1) == batch['label']).astype(jnp.float32),
    }

  def intermediates(
    self, variables: Mapping[str, Any], image: Array
  ) -> dict[str, Any]:
    """Returns what the model computes on the way, by name."""
    return self.model.apply(variables, image)[1]

  def predict(self, variables: Mapping[str, Any], image: Array) -> Array:
    """Returns the probability of each class, [batch, classes]."""
    logits, _ = self.model.apply(variables, image)
    if self.loss_function == 'sigmoid':
      return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits)

  def pictures(
    self, variables: Mapping[str, Any], batches: Iterable[Batch]
  ) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure of what the test data shows of the model."""
    found = classification_report.collect(self.predict, variables, batches)
    for name, draw in classification_report.PICTURES.items():
      yield name, draw(found, self.class_names)
