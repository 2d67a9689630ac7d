"""The texts and images that pictures of a DALL-E are made of."""

import dataclasses

import numpy as np

from vit_jax.analysis import examples, probe, text_examples
from vit_jax.models import dalle
from vit_jax.training import image_codes, inputs, records, trained


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Texts, each with an image, for a model and for a person.

  Attributes:
    names: the texts.
    inputs: tokens of each text, NO_TOKEN after its end, and the codes of its
      image, int32 [pairs, text + image].
    tokens: those of each text in letters, without padding.
    pixels: what the codes mean, from 0 to 1, [pairs, height, width, 3].
    source: where they are from, in words.
  """

  names: tuple[str, ...]
  inputs: np.ndarray
  tokens: tuple[tuple[str, ...], ...]
  pixels: np.ndarray
  source: str

  def first(self, number: int) -> 'Pairs':
    """Returns the first of them."""
    return Pairs(
      self.names[:number],
      self.inputs[:number],
      self.tokens[:number],
      self.pixels[:number],
      self.source,
    )


def read(model: trained.Trained, number: int, say: inputs.Say) -> Pairs:
  """Reads pairs of the test data, chosen at random, always the same.

  Args:
    model: a DALL-E, whose test data, tokenizer and discrete VAE to use.
    number: of pairs, at most.
    say: is told of those that cannot be read.

  Raises:
    ConfigError: there is no pair, or the model has no discrete VAE.
  """
  task, config, words = model.task, model.config, model.task.tokenizer
  image_codes.check_can_decode(task)
  source = records.open_split(config, 'test')
  transform = records.open_transform(config, 'test', words)
  found = examples.readable(
    [source.name(index) for index in range(len(source))],
    lambda index: transform(source[int(index)], None),
    number,
    'the test data',
    say,
  ).values()
  text = np.stack([example['text'] for example in found])
  codes = _codes(model, [*found])
  pixels = probe.in_batches(
    model, codes.reshape(-1, *task.model.grid), task.decode
  )
  marked = np.asarray(dalle.mark_padding(text))
  return Pairs(
    tuple(words.decode(row).strip() for row in text),
    np.concatenate([marked, codes], axis=1),
    tuple(text_examples.in_letters(words, row) for row in text),
    np.broadcast_to(pixels.clip(0, 1), (*pixels.shape[:-1], 3)),
    'the test data',
  )


def _codes(model: trained.Trained, found: list[dict]) -> np.ndarray:
  """Returns the codes of examples, int32 [examples, image]."""
  if 'codes' in found[0]:
    return np.stack([example['codes'] for example in found])
  images = np.stack([example['image'] for example in found])
  codes = probe.in_batches(model, images, model.task.encode)
  return codes.reshape(len(codes), -1)
