"""Learning without labels from two views of an image: BYOL.

Bootstrap Your Own Latent (Grill et al., arXiv:2006.07733): what an online
network makes of one view shall predict what a target network makes of the
other. The target is a moving average of the online network, so nothing has to
be told apart, and no negative examples are needed.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
Batch = Mapping[str, Array]
Variables = Mapping[str, Any]

# Less variance of directions than features have that tell images apart.
_COLLAPSED = 0.01


class Perceptron(nn.Module):
  """A hidden layer with batch norm and ReLU, and a linear one (section 3.3)."""

  hidden: int
  outputs: int

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Maps [batch, width] to float32 [batch, outputs]."""
    x = nn.Dense(self.hidden, name='hidden')(x.astype(jnp.float32))
    x = nn.BatchNorm(
      use_running_average=not train, momentum=0.9, epsilon=1e-5, name='norm'
    )(x)
    return nn.Dense(self.outputs, use_bias=False, name='output')(nn.relu(x))


def normalise(x: Array) -> Array:
  """Gives vectors [..., width] unit length."""
  square = jnp.square(x).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def distance(prediction: Array, target: Array) -> Array:
  """Returns 2 - 2 cos of the angle between vectors, [batch] from 0 to 4."""
  return 2 - 2 * (normalise(prediction) * normalise(target)).sum(-1)


def variance(projection: Array, mask: Array) -> Array:
  """Returns each example's share in the variance of directions, [batch].

  Their mean is 0 where all projections point one way, which is the collapse to
  look out for, and 1 where they have no direction in common.

  Args:
    projection: [batch, width].
    mask: [batch], 0 for examples that do not count.
  """
  direction = normalise(projection)
  weights = (mask > 0).astype(jnp.float32)[:, None]
  mean = (weights * direction).sum(0) / jnp.maximum(weights.sum(), 1)
  return jnp.square(direction - mean).sum(-1)


@dataclasses.dataclass(frozen=True)
class BYOL:
  """Bootstrap Your Own Latent, with any model of images.

  The parameters are those of the model and, under `task`, `projector` and
  `predictor`. The collection `batch_stats` mirrors them where there is batch
  norm. The collection `target` has `params` and `batch_stats` of the target
  network, which has no predictor, and the `step` that it was moved in last.
  """

  reads: ClassVar[str] = 'views'

  # Gives one vector an image as `pooled`.
  model: nn.Module
  # Height, width and channels of an image.
  image_shape: tuple[int, int, int]
  # Turns a length of training into steps; None where there is no training.
  to_steps: Callable[[str], int] | None = None
  # Width of the hidden layer of projector and predictor, and of projections.
  hidden: int = 4096
  projection: int = 256
  # How much of the target stays in a step; goes up to 1 along a cosine.
  target_decay: float = 0.996

  def __post_init__(self):
    if not 0 <= self.target_decay <= 1:
      raise ValueError(
        f'target_decay is {self.target_decay}, expected a share: 0 to 1.'
      )
    if self.hidden < 1 or self.projection < 1:
      raise ValueError(
        f'hidden is {self.hidden} and projection {self.projection}, expected '
        'widths of 1 or more.'
      )

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples."""
    image = jax.ShapeDtypeStruct((size, *self.image_shape), jnp.float32)
    return {'image': image, 'view': image}

  @property
  def _perceptron(self) -> Perceptron:
    return Perceptron(self.hidden, self.projection)

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables; the target is the same network.

    Raises:
      ValueError: the model does not give one vector an image.
    """
    model_key, projector_key, predictor_key = jax.random.split(key, 3)
    image = jnp.zeros((1, *self.image_shape), jnp.float32)
    (_, out), model = self.model.init_with_output(model_key, image)
    pooled = out['pooled']
    if pooled.ndim != 2:
      raise ValueError(
        f'The model gives features of shape {pooled.shape[1:]} for an image, '
        'but BYOL compares single vectors: choose a pooling for config.model.'
      )
    init = self._perceptron.init
    projector = init(projector_key, pooled, train=False)
    predictor = init(
      predictor_key, jnp.zeros((1, self.projection)), train=False
    )

    def joined(collection, **own):
      return {**model.get(collection, {}), 'task': own}

    variables, target = {}, {}
    for name in ('params', 'batch_stats'):
      both = {'projector': projector[name], 'predictor': predictor[name]}
      variables[name] = joined(name, **both)
      # Copies: the training step gives the memory of each array away.
      target[name] = jax.tree.map(
        jnp.copy, joined(name, projector=projector[name])
      )
    return {**variables, 'target': {**target, 'step': jnp.zeros((), jnp.int32)}}

  def _project(
    self, network: Variables, image: Array, **options: Any
  ) -> tuple[Array, dict[str, Any]]:
    """Returns projections of images, and the batch statistics after it.

    Args:
      network: `params` and `batch_stats`.
      image: [batch, height, width, channels].
      **options: of the model.
    """
    train = options.get('train', False)
    (_, out), changed = self.model.apply(
      network, image, mutable=['batch_stats'], **options
    )
    own = {name: network[name]['task']['projector'] for name in network}
    projection, of_projector = self._perceptron.apply(
      own, out['pooled'], train, mutable=['batch_stats']
    )
    stats = dict(changed['batch_stats'])
    stats['task'] = {**stats['task'], 'projector': of_projector['batch_stats']}
    return projection, stats

  def _predict(
    self, network: Variables, projection: Array, train: bool = False
  ) -> tuple[Array, dict[str, Any]]:
    """Returns the online network's predictions, and the statistics after it."""
    own = {name: network[name]['task']['predictor'] for name in network}
    prediction, of_predictor = self._perceptron.apply(
      own, projection, train, mutable=['batch_stats']
    )
    stats = dict(network['batch_stats'])
    stats['task'] = {**stats['task'], 'predictor': of_predictor['batch_stats']}
    return prediction, stats

  def _decay(self, step: Array) -> Array:
    """Returns how much of the target stays (section 3.2)."""
    share = jnp.asarray(step, jnp.float32) / self.to_steps('100%')
    cosine = (jnp.cos(jnp.pi * jnp.clip(share, 0, 1)) + 1) / 2
    return 1 - (1 - self.target_decay) * cosine

  def _moved_target(self, variables: Variables, step: Array) -> dict[str, Any]:
    """Returns the target after the step before this one.

    The paper moves it at the end of a step, when parameters are new. They are
    that here at the start of the next, which gives the same targets. What
    comes later in the same step, such as another micro-batch, finds it moved.
    """
    target, online = variables['target'], dict(variables['params'])
    online['task'] = {'projector': online['task']['projector']}
    decay = jnp.where(step > target['step'], self._decay(step - 1), 1.0)
    params = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * jax.lax.stop_gradient(new),
      dict(target['params']),
      online,
    )
    return {**target, 'params': params, 'step': jnp.asarray(step, jnp.int32)}

  def loss(
    self,
    variables: Variables,
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the loss of both directions, and metrics of training.

    Args:
      variables: see `init`.
      batch: `image` and `view` [batch, height, width, channels].
      key: random key of this batch.
      step: number of the step, for the target's decay.
      train: whether batch norm learns, and dropout acts.
    """
    keys = jax.random.split(key, 4)
    stats = variables['batch_stats']
    target = self._moved_target(variables, step)
    predictions, projections, targets = [], [], []
    for number, name in enumerate(('image', 'view')):
      online = {'params': variables['params'], 'batch_stats': stats}
      options = dict(train=train, rngs={'dropout': keys[number]})
      projection, stats = self._project(online, batch[name], **options)
      online['batch_stats'] = stats
      prediction, stats = self._predict(online, projection, train)
      options['rngs'] = {'dropout': keys[2 + number]}
      network = {x: target[x] for x in ('params', 'batch_stats')}
      wanted, of_target = self._project(network, batch[name], **options)
      target['batch_stats'] = of_target
      predictions.append(prediction)
      projections.append(projection)
      targets.append(wanted)
    loss = distance(predictions[0], targets[1])
    loss += distance(predictions[1], targets[0])
    everything = jnp.ones(len(loss))
    metrics = {
      'feature_variance': variance(projections[0], everything).mean(),
      'target_decay': self._decay(step),
    }
    return loss.mean(), metrics, {'batch_stats': stats, 'target': target}

  def metrics(self, variables: Variables, batch: Batch) -> dict[str, Array]:
    """Returns loss and share of the features' variance, [batch].

    As the paper's features, these are of networks that use the statistics of
    training. The variance is that within a batch; see `variance`.
    """
    online = {name: variables[name] for name in ('params', 'batch_stats')}
    target = {name: variables['target'][name] for name in online}
    views = batch['image'], batch['view']
    projections = [self._project(online, view)[0] for view in views]
    predictions = [self._predict(online, x)[0] for x in projections]
    targets = [self._project(target, view)[0] for view in views]
    loss = distance(predictions[0], targets[1])
    loss += distance(predictions[1], targets[0])
    mask = batch.get('mask', jnp.ones(len(loss)))
    return {'loss': loss, 'feature_variance': variance(projections[0], mask)}

  def warning(self, means: Mapping[str, float]) -> str:
    """Returns what to say if all features have become the same; '' if not.

    Args:
      means: of the metrics of training.
    """
    if means['feature_variance'] >= _COLLAPSED:
      return ''
    return (
      'collapsed: feature_variance is near 0, so all images have the same '
      'features. Try a lower config.optimizer.learning_rate, or a higher '
      'config.task.target_decay.'
    )

  def intermediates(self, variables: Variables, image: Array) -> dict[str, Any]:
    """Returns what the online model computes on the way, by name."""
    return self.model.apply(variables, image)[1]
