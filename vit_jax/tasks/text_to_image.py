"""Learning to continue a text with codes of an image: DALL-E's second stage.

Ramesh et al., arXiv:2102.12092, section 2.2.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure

from vit_jax.models import dalle, decoding
from vit_jax.tasks import caption_tokens, text_to_image_report

Array = jax.Array
Batch = Mapping[str, Array]


def check_makes_codes(task: Any, image_codes: str) -> None:
  """Raises ValueError if a task does not turn images into codes and back.

  Args:
    task: what was learned.
    image_codes: where that is from.
  """
  makes_codes = hasattr(task, 'encode') and hasattr(task, 'decode')
  # What makes images of texts has both, and codes of another model.
  if not makes_codes or not hasattr(task.model, 'vocabulary_size'):
    raise ValueError(
      f'image_codes is {image_codes}, where {type(task).__name__} was learned: '
      "expected the run of a discrete VAE, or DALL-E's released one."
    )


@dataclasses.dataclass(frozen=True)
class TextToImage:
  """Cross-entropy of the next token, of texts and of the images after them.

  Images have values from 0 to 1. They are read by a trained discrete VAE, which
  stays as it is: its variables are the collection `frozen`.
  """

  reads: ClassVar[str] = 'captions'
  bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
  teacher: ClassVar[str] = 'image_codes'
  sheets: ClassVar[tuple[str, ...]] = ('samples',)

  model: dalle.DallE
  image_shape: tuple[int, int, int]
  # Turns texts into tokens; None where only shapes are of interest.
  tokenizer: Any
  # The discrete VAE: its `task`, and its `variables` until `init` has put them
  # where they stay.
  frozen: Any
  # The workdir of a run of task discrete_vae, or the released one of DALL-E: a
  # file or a folder, for images of whatever size has a grid of codes as the
  # model's. '' for none, which takes batches of codes and draws nothing.
  image_codes: str = ''
  # Whether training batches have `codes` in place of `image`.
  reads_codes: bool = False
  # Of the text in the loss; the image has the rest.
  text_weight: float = 1 / 8
  # Whether the padding after a text is learned, which the paper leaves open:
  # most of its tokens are padding.
  learns_padding: bool = False
  # Share of captions that are left out in training, so that images can be
  # sampled with guidance; see `decoding.Sampling`.
  caption_dropout: float = 0.0

  def __post_init__(self):
    if not isinstance(self.model, dalle.DallE):
      raise ValueError(
        "Texts are continued by a model with the name 'dalle', not by a "
        f'{type(self.model).__name__}.'
      )
    for name in ('text_weight', 'caption_dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f'{name} is {getattr(self, name)}, expected a share: 0 or more, and '
          'less than 1.'
        )
    if self.frozen is not None:
      self._check_codes()

  def _check_codes(self) -> None:
    """Raises ValueError if the discrete VAE does not fit model or images."""
    vae = self.frozen.task
    check_makes_codes(vae, self.image_codes)
    if tuple(vae.image_shape) != tuple(self.image_shape):
      raise ValueError(
        f'The discrete VAE at {self.image_codes} reads images of '
        f'{vae.image_shape} (height, width, channels), these are '
        f'{self.image_shape}: make config.data end in that size.'
      )
    variables = jax.eval_shape(vae.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
    grid = jax.eval_shape(vae.encode, variables, image).shape[1:]
    known = vae.model.vocabulary_size
    width = self.model.code_width
    if width and width != vae.model.code_width:
      raise ValueError(
        f'code_width is {width}, but the discrete VAE at {self.image_codes} '
        f'has vectors of {vae.model.code_width} values: set it to that, or to '
        '0 for codes with embeddings of their own.'
      )
    if grid != tuple(self.model.grid) or known != self.model.image_vocabulary:
      raise ValueError(
        f'The discrete VAE at {self.image_codes} makes {grid[0]} x {grid[1]} '
        f'codes of {known}, but the model is for {self.model.grid} of '
        f'{self.model.image_vocabulary}: set grid={tuple(grid)} and '
        f'image_vocabulary={known}.'
      )

  def batch_spec(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of `size` pairs."""
    spec = caption_tokens.batch_spec(
      size, self.image_shape, self.model.text_length
    )
    if self.frozen is None or self.reads_codes:
      shape = (size, self.model.image_length)
      del spec['image']
      codes = jax.ShapeDtypeStruct(shape, jnp.int32)
      return {'codes': codes, **spec}
    return spec

  def init(self, key: Array) -> dict[str, Any]:
    """Returns freshly initialised variables, and those of the discrete VAE."""
    text = jnp.zeros((1, self.model.text_length), jnp.int32)
    codes = jnp.zeros((1, self.model.image_length), jnp.int32)
    variables = self.model.init(key, text, codes)
    if self.frozen is None:
      return variables
    # Without them, what follows are shapes.
    if self.model.code_width and self.frozen.variables is not None:
      variables['constants'] = {'code_vectors': self._code_vectors()}
    return {**variables, 'frozen': self.frozen.variables}

  def _code_vectors(self) -> Array:
    """Returns those of the discrete VAE, in units of their deviation."""
    vae = self.frozen.task.model
    vectors = vae.apply(self.frozen.variables, method='code_vectors')
    return vectors / vectors.std()

  def _codes(self, variables: Mapping[str, Any], batch: Batch) -> Array:
    """Returns the codes of a batch, int32 [batch, rows * columns]."""
    if 'codes' in batch:
      return batch['codes']
    frozen = jax.lax.stop_gradient(variables['frozen'])
    codes = self.frozen.task.encode(frozen, batch['image'])
    return codes.reshape(len(codes), -1)

  def _losses(
    self,
    variables: Mapping[str, Any],
    text: Array,
    codes: Array,
    **options: Any,
  ) -> tuple[Array, Array, Array]:
    """Returns what is lost of each token, and whether codes are predicted.

    Args:
      variables: of the model.
      text: [batch, text], NO_TOKEN where there is none.
      codes: [batch, image].
      **options: of the model.

    Returns:
      [batch, text], [batch, image], and bool [batch, image].
    """
    own = {name: variables[name] for name in variables if name != 'frozen'}
    (of_text, of_image), _ = self.model.apply(own, text, codes, **options)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return (
      cross_entropy(of_text, self.model.text_labels(text)),
      cross_entropy(of_image, codes),
      of_image.argmax(-1) == codes,
    )

  def _learned(self, text: Array) -> Array:
    """Returns 1 for tokens of texts that count, 0 for others."""
    return jnp.ones(text.shape) if self.learns_padding else text >= 0

  def loss(
    self,
    variables: Mapping[str, Any],
    batch: Batch,
    key: Array,
    step: Array,
    train: bool = True,
  ) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    """Returns the loss for each token, and metrics of training.

    Args:
      variables: of the model, and `frozen` of the discrete VAE.
      batch: see `batch_spec`; `codes` in place of `image` are taken as they
        are.
      key: random key of this batch.
      step: not used; other tasks have schedules.
      train: whether to regularise, and to leave captions out.

    Returns:
      The loss; a dict: `text_loss` and `image_loss` in nats, `image_accuracy`,
      the share of codes that were likeliest, `image_perplexity`, and
      `truncated`, the share of texts that were cut; and no other variables.
    """
    del step
    caption_key, dropout_key = jax.random.split(key)
    text = dalle.mark_padding(batch['text'])
    counts = self._learned(text)
    if train and self.caption_dropout:
      left_out = jax.random.bernoulli(
        caption_key, self.caption_dropout, (len(text), 1)
      )
      text = jnp.where(left_out, dalle.NO_TOKEN, text)
      counts = counts * ~left_out
    of_text, of_image, right = self._losses(
      variables,
      text,
      self._codes(variables, batch),
      train=train,
      rngs={'dropout': dropout_key},
    )
    text_loss = (of_text * counts).sum() / jnp.maximum(counts.sum(), 1)
    image_loss = of_image.mean()
    metrics = {
      'text_loss': text_loss,
      'image_loss': image_loss,
      'image_accuracy': right.mean(),
      'image_perplexity': jnp.exp(image_loss),
      'truncated': batch['truncated'].mean(),
    }
    return self._weighted(text_loss, image_loss), metrics, {}

  def _weighted(self, text_loss: Array, image_loss: Array) -> Array:
    return self.text_weight * text_loss + (1 - self.text_weight) * image_loss

  def metrics(
    self, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, Array]:
    """Returns the losses of each example, and its share of likeliest codes.

    That of a text is the mean of its tokens. So that of a data set is a mean of
    texts, where `loss` has one of tokens, in which long texts count for more.
    """
    text = dalle.mark_padding(batch['text'])
    of_text, of_image, right = self._losses(
      variables, text, self._codes(variables, batch)
    )
    counts = self._learned(text)
    text_loss = (of_text * counts).sum(1) / jnp.maximum(counts.sum(1), 1)
    image_loss = of_image.mean(1)
    return {
      'loss': self._weighted(text_loss, image_loss),
      'text_loss': text_loss,
      'image_loss': image_loss,
      'image_accuracy': right.mean(1),
    }

  def encode(self, variables: Mapping[str, Any], image: Array) -> Array:
    """Returns the codes of images, int32 [batch, rows, columns]."""
    return self.frozen.task.encode(variables['frozen'], image)

  def decode(self, variables: Mapping[str, Any], codes: Array) -> Array:
    """Returns the images that codes [batch, rows, columns] mean."""
    return self.frozen.task.decode(variables['frozen'], codes)

  def sample(
    self,
    variables: Mapping[str, Any],
    text: Array,
    keys: Array,
    sampling: decoding.Sampling,
    given: Array | None = None,
  ) -> Array:
    """Draws images.

    Args:
      variables: of the model.
      text: int [texts, text], as the tokenizer gives them.
      keys: a random key for each image, [texts, images]; see
        `decoding.candidate_keys`.
      sampling: how to draw.
      given: int [texts, rows * columns], codes of the upper rows that all
        images of a text have in common; None gives none.

    Returns:
      Codes, int32 [texts, images, rows * columns].
    """
    text = dalle.mark_padding(text)
    return decoding.sample(self.model, variables, text, keys, sampling, given)

  @functools.cached_property
  def _drawn(self) -> Callable:
    # Compiled once for all sheets: it takes longer than drawing.
    return text_to_image_report.make_draw(self)

  def pictures(
    self, variables: Mapping[str, Any], batches: Iterable[Batch]
  ) -> Iterator[tuple[str, Figure]]:
    """Yields name and figure of what the model draws of texts of test data."""
    if self.frozen is not None:
      yield (
        'samples',
        text_to_image_report.samples(
          self._drawn, self.tokenizer, variables, batches
        ),
      )
