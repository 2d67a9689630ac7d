"""What tasks that learn from images with texts have in common."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from vit_jax.models.clip import CLIP
from vit_jax.tasks import caption_tokens

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ImageText:
  """A task with the towers of a CLIP, or some of them.

  Each has `encode_image(variables, image)`, which gives features and
  intermediates; see `vit_jax.evaluation.pair_features` for what else.
  """

  reads: ClassVar[str] = 'captions'

  model: CLIP
  image_shape: tuple[int, int, int]
  # Turns texts into tokens; None where only shapes are of interest.
  tokenizer: Any

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` pairs."""
    return caption_tokens.batch_spec(
      size, self.image_shape, self.model.text.length
    )

  def intermediates(
    self, variables: Mapping[str, Any], image: Array
  ) -> dict[str, Any]:
    """Returns what the image tower computes on the way, by name."""
    return self.encode_image(variables, image)[1]

  def tokens(self, texts: Sequence[str]) -> Any:
    """Returns the tokens of texts, int32 [texts, length]."""
    return self.tokenizer(texts)[0]


def learn(
  module: nn.Module,
  variables: Mapping[str, Any],
  *inputs: Array,
  key: Array,
  train: bool,
) -> tuple[Any, dict[str, Any]]:
  """Applies a module to a batch of training.

  Args:
    module: that gives an output and intermediates.
    variables: of it.
    *inputs: of it.
    key: of what is random.
    train: whether to regularise, and to learn statistics of batch norm.

  Returns:
    The output; and the collections other than the parameters after it, none
    if not training.
  """
  others = [name for name in variables if name != 'params'] if train else []
  (output, _), changed = module.apply(
    variables, *inputs, train=train, rngs={'dropout': key}, mutable=others
  )
  return output, changed
