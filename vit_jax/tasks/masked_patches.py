"""Learning without labels to say how patches look that are hidden.

Masked patch prediction (ViT, Dosovitskiy et al., arXiv:2010.11929, section 4.6
and appendix B.1.2): half of the patch embeddings are corrupted, and a linear
layer says of each of them how its patch looks, from what comes out of the
transformer in its place.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from vit_jax.models import layers
from vit_jax.models.vit import ViT
from vit_jax.tasks import masked_patches_report, patch_colors

Array = jax.Array
Batch = Mapping[str, Array]

# Of the corrupted patches; the rest keep their embedding.
_MASKED, _REPLACED = 0.8, 0.1


class Corruption(NamedTuple):
  """Which patches are corrupted, and how.

  Attributes:
    index: int [batch, corrupted], each patch at most once.
    masked: bool [batch, patches], where the embedding gives way to [mask].
    source: int [batch, patches], the patch whose embedding is seen: mostly the
      patch itself.
  """

  index: Array
  masked: Array
  source: Array


def draw_corruption(
  key: Array, batch: int, patches: int, share: float
) -> Corruption:
  """Draws what to corrupt: in each image as many patches, 1 or more.

  The embedding that replaces another is that of another patch of the same
  image, so that none has to travel between devices.

  Args:
    key: random key.
    batch: number of images.
    patches: of each image, 2 or more.
    share: of the patches that are corrupted.
  """
  order_key, kind_key, source_key = jax.random.split(key, 3)
  count = max(1, round(share * patches))
  order = jnp.argsort(jax.random.uniform(order_key, (batch, patches)), axis=1)
  chosen = jnp.argsort(order, axis=1) < count
  kind = jax.random.uniform(kind_key, (batch, patches))
  replaced = (kind >= _MASKED) & (kind < _MASKED + _REPLACED)
  own = jnp.arange(patches)
  offset = jax.random.randint(source_key, (batch, patches), 1, patches)
  source = jnp.where(chosen & replaced, (own + offset) % patches, own)
  return Corruption(order[:, :count], chosen & (kind < _MASKED), source)


@dataclasses.dataclass(frozen=True)
class MaskedPatches:
  """Prediction of what corrupted patches look like.

  The parameters are those of the model and, under `task`, the [mask] embedding
  and the layer that predicts.
  """

  reads: ClassVar[str] = 'images'
  sheets: ClassVar[tuple[str, ...]] = ('masked_patches',)

  # A ViT; its features are 'encoded' where it pools by a class token, which
  # learns nothing here.
  model: nn.Module
  # Height, width and channels of an image.
  image_shape: tuple[int, int, int]
  # What is predicted of a patch: the class of its mean colour, the classes of
  # the 16 colours of the patch made small, or all its pixels.
  target: Literal['mean_color', 'downsized', 'pixels'] = 'mean_color'
  # Share of the patches that are corrupted.
  corrupted: float = 0.5
  # Of each channel of a colour.
  bits: int = 3
  # Smallest and largest value of an image, as `value_range` has made it.
  value_range: tuple = (-1.0, 1.0)

  def __post_init__(self):
    if not isinstance(self.model, ViT) or self.model.patch_dropout:
      raise ValueError(
        'Masked patches are those of a ViT that drops none: choose a model '
        "with the name 'vit', and patch_dropout 0."
      )
    if not 0 < self.corrupted <= 1:
      raise ValueError(
        f'corrupted is {self.corrupted}, expected a share: more than 0, and '
        'at most 1.'
      )
    if not 1 <= self.bits <= 8:
      raise ValueError(f'bits is {self.bits}, expected 1 to 8.')
    if len(self.value_range) != 2 or not np.diff(self.value_range) > 0:
      raise ValueError(
        f'value_range is {self.value_range}, expected the smallest and the '
        'largest value of an image, such as (-1, 1).'
      )

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples."""
    shape = (size, *self.image_shape)
    return {'image': jax.ShapeDtypeStruct(shape, jnp.float32)}

  @functools.cached_property
  def _embeddings(self) -> tuple[int, int, int]:
    """Rows, columns and width of the patch embeddings of an image."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    image = self.batch_spec(1)['image']
    (_, out), _ = jax.eval_shape(self.model.init_with_output, key, image)
    rows, columns, width = out['patches'].shape[1:]
    if rows * columns < 2:
      raise ValueError(
        f'An image of {self.image_shape} (height, width, channels) is a single '
        'patch, but patches are predicted from others: use smaller patches.'
      )
    return rows, columns, width

  @property
  def _colors(self) -> int:
    return 2 ** (self.bits * self.image_shape[-1])

  @functools.cached_property
  def _prediction(self) -> layers.Linear:
    """The layer that predicts; it starts at zero, as classifiers do."""
    rows, columns, width = self._embeddings
    outputs = {
      'mean_color': self._colors,
      'downsized': patch_colors.DOWNSIZED**2 * self._colors,
      'pixels': int(np.prod(self.image_shape)) // (rows * columns),
    }[self.target]
    return layers.Linear(
      (width,), (outputs,), kernel_init=nn.initializers.zeros
    )

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables."""
    model_key, mask_key, prediction_key = jax.random.split(key, 3)
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    variables = self.model.init(model_key, image)
    features = jnp.zeros((1, self._embeddings[-1]))
    own = {
      'mask': nn.initializers.normal(0.02)(mask_key, features.shape[1:]),
      'prediction': self._prediction.init(prediction_key, features)['params'],
    }
    return {**variables, 'params': {**variables['params'], 'task': own}}

  def _draw(self, key: Array, batch: int) -> Corruption:
    rows, columns, _ = self._embeddings
    return draw_corruption(key, batch, rows * columns, self.corrupted)

  def _outputs(
    self,
    variables: Mapping[str, Any],
    image: Array,
    corruption: Corruption,
    **options: Any,
  ) -> Array:
    """Returns what is predicted, float32 [batch, corrupted, outputs]."""
    own = variables['params']['task']

    def corrupt(x):
      x = jnp.take_along_axis(x, corruption.source[..., None], axis=1)
      mask = own['mask'].astype(x.dtype)
      return jnp.where(corruption.masked[..., None], mask, x)

    _, out = self.model.apply(variables, image, corrupt=corrupt, **options)
    # The class token comes first.
    encoded = out['encoded'][:, -corruption.masked.shape[1] :]
    encoded = jnp.take_along_axis(encoded, corruption.index[..., None], axis=1)
    return self._prediction.apply({'params': own['prediction']}, encoded)

  def targets(self, image: Array) -> Array:
    """Returns what is to be predicted of each patch of images.

    Args:
      image: [batch, height, width, channels].

    Returns:
      [batch, patches, ...]: int32 classes [1] of 'mean_color' and [16] of
      'downsized', or the values [pixels * channels] of 'pixels'.
    """
    patches = patch_colors.cut(image, self._embeddings[:2])
    if self.target == 'pixels':
      return patches.reshape(*patches.shape[:2], -1)
    if self.target == 'downsized':
      small = patch_colors.downsize(patches)
    else:
      small = patches.mean((-3, -2), keepdims=True)
    low, high = self.value_range
    classes = patch_colors.color_classes(
      (small - low) / (high - low), self.bits
    )
    return classes.reshape(*classes.shape[:2], -1)

  def _compare(
    self, outputs: Array, image: Array, corruption: Corruption
  ) -> dict[str, Array]:
    """Returns means over the corrupted patches of each image, [batch]."""
    index = corruption.index[..., None]
    targets = jnp.take_along_axis(self.targets(image), index, axis=1)
    if self.target == 'pixels':
      return {'loss': jnp.square(outputs - targets).mean((1, 2))}
    logits = outputs.reshape(*targets.shape, self._colors)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = (logits.argmax(-1) == targets).astype(jnp.float32)
    return {'loss': loss.mean((1, 2)), 'accuracy': right.mean((1, 2))}

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the mean loss over corrupted patches, and metrics of training.

    Args:
      variables: see `init`.
      batch: `image` [batch, height, width, channels].
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise.
    """
    del step
    image = batch['image']
    corruption_key, dropout_key = jax.random.split(key)
    corruption = self._draw(corruption_key, image.shape[0])
    outputs = self._outputs(
      variables, image, corruption, train=train, rngs={'dropout': dropout_key}
    )
    means = jax.tree.map(jnp.mean, self._compare(outputs, image, corruption))
    return means.pop('loss'), means, {}

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns loss and accuracy of colours of each example, [batch].

    What is corrupted depends on nothing but the place in the batch.
    """
    image = batch['image']
    corruption = self._draw(jax.random.key(0), image.shape[0])
    outputs = self._outputs(variables, image, corruption)
    return self._compare(outputs, image, corruption)

  def intermediates(
    self, variables: Mapping[str, Any], image: Array
  ) -> dict[str, Any]:
    """Returns what the model computes on the way, by name."""
    return self.model.apply(variables, image)[1]

  def _imagined(self, outputs: Array, shape: tuple[int, ...]) -> Array:
    """Returns predicted patches, [batch, corrupted, *shape], from 0 to 1."""
    if self.target == 'pixels':
      low, high = self.value_range
      values = (outputs - low) / (high - low)
      return values.reshape(*outputs.shape[:2], *shape)
    logits = outputs.reshape(*outputs.shape[:2], -1, self._colors)
    colors = patch_colors.class_colors(logits.argmax(-1), self.bits, shape[-1])
    size = 1 if self.target == 'mean_color' else patch_colors.DOWNSIZED
    colors = colors.reshape(*outputs.shape[:2], size, size, shape[-1])
    rows, columns = (side // size for side in shape[:2])
    return colors.repeat(rows, axis=2).repeat(columns, axis=3)

  def reconstruct(
    self, variables: Mapping[str, Any], image: Array
  ) -> tuple[Array, Array, Array]:
    """Returns images as they are, corrupted, and with the predicted patches.

    Args:
      variables: see `init`.
      image: [batch, height, width, channels].

    Returns:
      Three of the shape of `image`, from 0 to 1; masked patches are grey.
    """
    grid, (low, high) = self._embeddings[:2], self.value_range
    corruption = self._draw(jax.random.key(0), image.shape[0])
    outputs = self._outputs(variables, image, corruption)
    patches = patch_colors.cut((image - low) / (high - low), grid)
    seen = jnp.take_along_axis(
      patches, corruption.source[..., None, None, None], axis=1
    )
    seen = jnp.where(corruption.masked[..., None, None, None], 0.5, seen)
    imagined = self._imagined(outputs, patches.shape[2:])
    row = jnp.arange(image.shape[0])[:, None]
    predicted = patches.at[row, corruption.index].set(imagined)
    return tuple(
      jnp.clip(patch_colors.join(x, grid), 0, 1)
      for x in (patches, seen, predicted)
    )

  @functools.cached_property
  def _look(self) -> Callable:
    # Compiled once for all sheets.
    return masked_patches_report.make_look(self.reconstruct)

  def pictures(
    self, variables: Mapping[str, Any], batches: Iterable[Batch]
  ) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure of how the first test images are completed."""
    images = masked_patches_report.collect(self._look, variables, batches)
    yield 'masked_patches', masked_patches_report.draw(*images)
