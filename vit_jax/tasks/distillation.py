"""Learning to classify from a teacher: distillation and noisy students.

The targets are what a trained model says of the images (Hinton et al.,
arXiv:1503.02531): its probabilities, or its most probable class. With a teacher
that sees clean images and a student that sees augmented ones and drops parts of
itself, this is self-training with a noisy student (Xie et al.,
arXiv:1911.04252); the student can be the teacher of the next.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from vit_jax.tasks.classification import Classification, mixup

Array = jax.Array
Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Classification):
  """Classification with the targets of a teacher.

  Label smoothing is for true labels. Mixup mixes the student's images, and the
  targets of both kinds alike. The teacher takes images as the student does: of
  the same size, with the same range of values.
  """

  teacher: ClassVar[str] = 'teacher_path'
  share_of_labels: ClassVar[str] = 'true_labels'

  # The workdir of a run that has learned the same classes in the same order, or
  # a released checkpoint.
  teacher_path: str
  # The model there: its `task`, and its `variables` until `init` has put them
  # where they stay, the collection `frozen`.
  frozen: Any
  # What the teacher looks at: the student's image, or another view of it, such
  # as one that is not augmented.
  teacher_sees: Literal['image', 'view'] = 'image'
  # Probabilities of the teacher, or its most probable class.
  targets: Literal['soft', 'hard'] = 'soft'
  # Divides the logits of both for soft targets: the higher, the more do small
  # probabilities count.
  temperature: float = 1.0
  # Share of the true labels in the loss; 0 does not read them, and takes any
  # images.
  true_labels: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not self.temperature > 0:
      raise ValueError(
        f'temperature is {self.temperature}, expected more than 0.'
      )
    if self.targets == 'hard' and self.temperature != 1:
      raise ValueError(
        f'temperature is {self.temperature}, but hard targets have none: '
        "leave it 1, or choose the targets 'soft'."
      )
    if not 0 <= self.true_labels < 1:
      raise ValueError(
        f'true_labels is {self.true_labels}, expected a share: 0 or more, and '
        'less than 1.'
      )
    if self.frozen is None:
      raise ValueError('teacher_path is empty, expected a trained model.')
    self._check_teacher(self.frozen.task)

  def _check_teacher(self, task: Any) -> None:
    """Raises ValueError if the teacher cannot be asked about the images."""
    if not isinstance(task, Classification):
      raise ValueError(
        f'The teacher {self.teacher_path} does not classify: its task is '
        f'{type(task).__name__}.'
      )
    if len(task.class_names) != len(self.class_names):
      raise ValueError(
        f'The teacher {self.teacher_path} knows {len(task.class_names)} '
        f'classes, but the data has {len(self.class_names)}: they have to be '
        'the same.'
      )
    if tuple(task.image_shape) != tuple(self.image_shape):
      raise ValueError(
        f'The teacher {self.teacher_path} takes images of {task.image_shape} '
        f'(height, width, channels), these are {self.image_shape}: make '
        'config.data end in that size.'
      )

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` examples."""
    spec = super().batch_spec(size)
    if self.teacher_sees == 'view':
      spec['view'] = spec['image']
    if not self.true_labels:
      del spec['label']
    return spec

  def test_batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a test batch, which has labels."""
    return super().batch_spec(size)

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables, and those of the teacher."""
    return {**super().init(key), 'frozen': self.frozen.variables}

  def _teacher_logits(self, variables: Mapping[str, Any], image: Array):
    teacher = jax.lax.stop_gradient(variables['frozen'])
    return self.frozen.task.model.apply(teacher, image)[0]

  def _probabilities(self, logits: Array) -> Array:
    """Returns the targets of a teacher, [batch, classes]."""
    if self.targets == 'hard':
      return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    if self.frozen.task.loss_function == 'sigmoid':
      return jax.nn.sigmoid(logits / self.temperature)
    return jax.nn.softmax(logits / self.temperature)

  def _labels(self, label: Array, train: bool) -> Array:
    """Returns the targets of true labels, [batch, classes]."""
    labels = jax.nn.one_hot(label, len(self.class_names))
    if train and self.label_smoothing:
      return optax.smooth_labels(labels, self.label_smoothing)
    return labels

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the mean loss over the batch, and metrics of training.

    The loss of soft targets is multiplied with the square of the temperature,
    which keeps its gradients as large as at a temperature of 1. Who is right is
    told only where true labels are read.

    Args:
      variables: of the model, and `frozen` of the teacher.
      batch: `image` [batch, height, width, channels]; `view` like `image` if
        the teacher sees that; `label` [batch] if true labels count.
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to learn statistics of batch norm.
    """
    del step
    image = batch['image']
    mixup_key, dropout_key = jax.random.split(key)
    said = self._teacher_logits(variables, batch[self.teacher_sees])
    # [batch, 1 or 2, classes]
    targets = self._probabilities(said)[:, None]
    if self.true_labels:
      labels = self._labels(batch['label'], train)
      targets = jnp.append(targets, labels[:, None], axis=1)
    if train and self.mixup:
      image, targets = mixup(image, targets, self.mixup, mixup_key)
    logits, changed = self._learn(variables, image, dropout_key, train)
    taught = self._cross_entropy(logits / self.temperature, targets[:, 0])
    loss = (1 - self.true_labels) * self.temperature**2 * taught
    if self.true_labels:
      loss += self.true_labels * self._cross_entropy(logits, targets[:, 1])
    found, said = logits.argmax(-1), said.argmax(-1)
    metrics = {'agreement': (found == said).mean()}
    if self.true_labels:
      metrics |= {
        'accuracy': (found == batch['label']).mean(),
        'teacher_accuracy': (said == batch['label']).mean(),
      }
    return loss.mean(), metrics, changed
