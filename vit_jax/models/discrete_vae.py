"""The discrete VAE of DALL-E: images to a grid of codes, and back.

Ramesh et al., arXiv:2102.12092, section 2.1 and appendix A. The defaults are
OpenAI's released encoder and decoder, block for block: an image of 256 x 256
becomes 32 x 32 codes out of 8,192.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models import discrete_vae_stacks as stacks

Array = jax.Array

# Keeps pixels away from 0 and 1, where the logit is infinite.
PIXEL_MARGIN = 0.1


def map_pixels(image: Array) -> Array:
  """Maps 0..1 to PIXEL_MARGIN..1 - PIXEL_MARGIN (appendix A.3)."""
  return (1 - 2 * PIXEL_MARGIN) * image + PIXEL_MARGIN


def unmap_pixels(image: Array) -> Array:
  """Undoes `map_pixels`; the result is clipped to 0..1."""
  return jnp.clip((image - PIXEL_MARGIN) / (1 - 2 * PIXEL_MARGIN), 0, 1)


def to_pixels(statistics: Array) -> Array:
  """Returns the image, 0..1, that a decoder means.

  Args:
    statistics: [batch, height, width, 2 * channels]: where the logit of each
      mapped pixel is, then the logarithm of its scale, which is not used.
  """
  location, _ = jnp.split(statistics, 2, axis=-1)
  return unmap_pixels(jax.nn.sigmoid(location))


def gumbel_softmax(logits: Array, temperature: Array, key: Array) -> Array:
  """Samples relaxed one-hot vectors (arXiv:1611.01144, arXiv:1611.00712).

  Args:
    logits: [..., codes].
    temperature: the lower, the closer to one-hot.
    key: random key.
  """
  noise = jax.random.gumbel(key, logits.shape, logits.dtype)
  return jax.nn.softmax((logits + noise) / temperature)


def _unit(x: Array) -> Array:
  """Scales the vectors along the last axis to length 1."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


class Codebook(nn.Module):
  """A vector for each code; what the decoder begins with.

  Attributes:
    codes: number of codes.
    width: length of a vector.
    unit: whether vectors are of length 1, and have no common bias.
    std: standard deviation at the start.
  """

  codes: int
  width: int
  unit: bool
  std: float

  def setup(self):
    init = nn.initializers.normal(self.std)
    self.kernel = self.param('kernel', init, (self.codes, self.width))
    if not self.unit:
      self.bias = self.param('bias', nn.initializers.zeros, (self.width,))

  def __call__(self, codes: Array) -> Array:
    """Maps integers [...] or shares [..., codes] to vectors [..., width]."""
    kernel = _unit(self.kernel) if self.unit else self.kernel
    # A lookup is the same as a product with one-hot vectors, at no cost.
    is_hard = jnp.issubdtype(codes.dtype, jnp.integer)
    vectors = kernel[codes] if is_hard else codes @ kernel
    return vectors if self.unit else vectors + self.bias

  def similarity(self, vectors: Array) -> Array:
    """Returns the product with each code of length 1, [..., codes]."""
    return vectors @ _unit(self.kernel).T


class DiscreteVae(nn.Module):
  """Encoder, codebook and decoder.

  The modules can be applied by themselves:

    logits, out = model.apply(variables, image, method='encode')
    statistics, out = model.apply(variables, codes, method='decode')
  """

  # Channels of the first group of the encoder and of the last of the decoder;
  # each group further inside has twice as many.
  width: int = 256
  blocks_per_group: int = 2
  # Between groups, height and width are halved.
  groups: int = 4
  vocabulary_size: int = 8192
  # Length of the vector that stands for a code.
  code_width: int = 128
  # Side of the kernel that sees the image first.
  stem_size: int = 7
  # Side of the other kernels of the encoder. If both are 1, and there is one
  # group, a code says what its own patch looks like, whatever is around it: the
  # same part of two things has the same code.
  encoder_kernel: int = 3
  # Side of the squares of pixels that are one position from the start. 1 is
  # the paper's; more is far cheaper, as nothing is computed for each pixel.
  patch_size: int = 1
  # Of images.
  channels: int = 3
  # Taken off the mapped pixels that the encoder sees, and what they are then
  # divided by. 0.9 is white: drawings on it differ from each other from the
  # start, while otherwise all their patches begin with the same code.
  pixel_mean: float = 0.0
  pixel_std: float = 1.0
  # Of the codebook before training; 0 stands for vocabulary_size^-1/2, as in
  # the released code.
  codebook_std: float = 0.0
  # gumbel: the encoder gives the probability of each code, as in the paper.
  # vector: it gives a vector, which becomes the nearest in the codebook
  # (VQ-VAE, arXiv:1711.00937), both of length 1 (arXiv:2110.04627, 3.2); the
  # task has to keep codes alive that none is near to.
  quantization: Literal['gumbel', 'vector'] = 'gumbel'
  # full: of a block only the input is kept for the backward pass.
  remat: Literal['none', 'full'] = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self._check()
    is_vector = self.quantization == 'vector'
    sizes = {
      'width': self.width,
      'groups': self.groups,
      'blocks_per_group': self.blocks_per_group,
      'patch_size': self.patch_size,
      'dtype': self.dtype,
      'block': functools.partial(
        stacks.Block if self.remat == 'none' else nn.remat(stacks.Block),
        gain=(self.groups * self.blocks_per_group) ** -2,
        dtype=self.dtype,
      ),
    }
    self.encoder = stacks.Encoder(
      outputs=self.code_width if is_vector else self.vocabulary_size,
      stem_size=self.stem_size,
      kernel=self.encoder_kernel,
      **sizes,
    )
    self.codebook = Codebook(
      self.vocabulary_size,
      self.code_width,
      unit=is_vector,
      std=self.codebook_std or self.vocabulary_size**-0.5,
    )
    self.decoder = stacks.Decoder(channels=self.channels, **sizes)

  @property
  def stride(self) -> int:
    """Pixels between two codes, along height and width."""
    return self.patch_size * 2 ** (self.groups - 1)

  def _check(self) -> None:
    """Raises ValueError for sizes that cannot be."""
    for name in (
      'width', 'blocks_per_group', 'groups', 'vocabulary_size', 'code_width',
      'stem_size', 'encoder_kernel', 'patch_size', 'channels',
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f'{name} is {getattr(self, name)}, expected 1 or more')
    if self.width % stacks.BOTTLENECK:
      raise ValueError(
        f'width is {self.width}, expected a multiple of {stacks.BOTTLENECK}: '
        'so much narrower are most convolutions of a block.'
      )
    if not self.pixel_std > 0:
      raise ValueError(f'pixel_std is {self.pixel_std}, expected more than 0')
    for name in ('stem_size', 'encoder_kernel'):
      if not getattr(self, name) % 2:
        raise ValueError(
          f'{name} is {getattr(self, name)}, expected an odd number: an even '
          'kernel has no middle.'
        )

  def encode(self, image: Array) -> tuple[Array, dict[str, Array]]:
    """Says which codes an image has.

    Args:
      image: [batch, height, width, channels], 0..1.

    Returns:
      Logits, float32 [batch, rows, columns, vocabulary_size]; the code is the
      largest. And a dict of intermediates: those of `stacks.Encoder` and, for
      'vector', `vectors`.

    Raises:
      ValueError: the image does not fit the model.
    """
    height, width, channels = image.shape[1:]
    if height % self.stride or width % self.stride:
      raise ValueError(
        f'A code stands for {self.stride}x{self.stride} pixels, which do not '
        f'divide an image of {height}x{width}. Resize the images.'
      )
    if channels != self.channels:
      raise ValueError(
        f'The images have {channels} channels, but model.channels is '
        f'{self.channels}.'
      )
    pixels = (map_pixels(image) - self.pixel_mean) / self.pixel_std
    x, out = self.encoder(pixels)
    if self.quantization == 'vector':
      out['vectors'] = x = _unit(x)
      # Among vectors of length 1, the nearest has the largest product.
      x = self.codebook.similarity(x)
    return x, out

  def decode(self, codes: Array) -> tuple[Array, dict[str, Array]]:
    """Says what image codes stand for; see `to_pixels`.

    Args:
      codes: integers [batch, rows, columns], or shares of all codes [batch,
        rows, columns, vocabulary_size].

    Returns:
      [batch, height, width, 2 * channels]: location and logarithm of the
      scale of a Laplace distribution of the logits of mapped pixels; and a
      dict of intermediates: `input`, and those of `stacks.Decoder`.
    """
    vectors = self.codebook(codes)
    statistics, out = self.decoder(vectors)
    return statistics, {'input': vectors, **out}

  def code_vectors(self) -> Array:
    """Returns what the decoder begins with, [vocabulary_size, code_width]."""
    return self.codebook(jnp.arange(self.vocabulary_size))

  def __call__(
    self, image: Array, *, train: bool = False, temperature: float = 1.0
  ) -> tuple[Array, dict[str, Any]]:
    """Encodes and decodes images.

    Args:
      image: [batch, height, width, channels], 0..1.
      train: whether gradients have to reach the encoder: 'gumbel' mixes
        codes at random (key `codes`), 'vector' passes gradients straight
        through the choice. Otherwise the most probable codes are decoded.
      temperature: of the mixture.

    Returns:
      What `decode` does; and a dict of intermediates: `logits` and `codes`
      [batch, rows, columns], `encoder` and `decoder`, and for 'vector'
      `vectors` and `chosen`, the encoder's vectors and those of the codes.

    Raises:
      ValueError: sizes that cannot work.
    """
    logits, encoder = self.encode(image)
    codes = logits.argmax(-1).astype(jnp.int32)
    out = {'logits': logits, 'codes': codes, 'encoder': encoder}
    if self.quantization == 'vector':
      out['vectors'] = vectors = encoder['vectors']
      out['chosen'] = chosen = self.codebook(codes)
      vectors = vectors + jax.lax.stop_gradient(chosen - vectors)
      statistics, out['decoder'] = self.decoder(vectors)
    else:
      if train:
        key = self.make_rng('codes')
        codes = gumbel_softmax(logits, temperature, key)
      statistics, out['decoder'] = self.decode(codes)
    return statistics, out
