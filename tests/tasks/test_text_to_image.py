"""Text to image: losses by hand, captions left out, codes of a frozen model."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from vit_jax.data.tokenizer import Tokenizer
from vit_jax.models import dalle, decoding
from vit_jax.models.vit import ViT
from vit_jax.tasks import text_to_image
from vit_jax.tasks.text_to_image import TextToImage
from vit_jax.training import watch

WORDS = Tokenizer((), 8)
END, SHAPE, KEY = WORDS.end, (4, 6, 1), jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Codes:
  """Stands for a discrete VAE: a code is the brightness of 2 x 2 pixels."""

  image_shape: tuple = SHAPE
  model = types.SimpleNamespace(
    vocabulary_size=5,
    code_width=3,
    apply=lambda variables, method: (
      jnp.arange(15.0).reshape(5, 3) * variables['params']['scale']
    ),
  )

  def init(self, key):
    return {'params': {'scale': jnp.ones(())}}

  def encode(self, variables, image):
    cells = image.reshape(-1, 2, 2, 3, 2).mean((2, 4))
    scale = variables['params']['scale']
    return (cells * scale * 5).astype(jnp.int32).clip(0, 4)

  def decode(self, variables, codes):
    return jnp.repeat(jnp.repeat(codes, 2, 1), 2, 2)[..., None] / 5


def make(vae=Codes(), **fields):
  sizes = dict(
    text_vocabulary=WORDS.size, text_length=8, image_vocabulary=5, grid=(2, 3),
    width=16, depth=2, mlp_dim=24, num_heads=2,
  )  # fmt: skip
  sizes |= fields.pop('sizes', {})
  frozen = vae and types.SimpleNamespace(task=vae, variables=vae.init(None))
  fields = {'model': dalle.DallE(**sizes), 'image_shape': SHAPE, **fields}
  return TextToImage(
    tokenizer=WORDS, frozen=frozen, image_codes='runs/codes', **fields
  )


def variables(task):
  tree = jax.eval_shape(task.init, KEY)
  rng = np.random.default_rng(0)
  noise = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32), tree
  )
  return {**noise, 'frozen': {'params': {'scale': jnp.ones(())}}}


def batch():
  rng = np.random.default_rng(1)
  text, truncated = WORDS(['a b', 'cde', 'much too long a text'])
  assert list(truncated) == [False, False, True]
  return {
    'image': jnp.asarray(rng.uniform(size=(3, *SHAPE)), jnp.float32),
    'text': jnp.asarray(text),
    'identity': jnp.arange(3),
    'truncated': jnp.asarray(truncated),
  }


def by_hand(task, given, text):
  """Returns what is lost of each token, and which of a text are real."""
  codes = np.asarray(Codes().encode(given['frozen'], batch()['image']))
  codes = codes.reshape(3, 6)
  of_text, of_image = task.model.apply(
    {'params': given['params']}, text, jnp.asarray(codes)
  )[0]
  own = WORDS.size + np.arange(8)
  labels = np.where(text < 0, own, text)

  def lost(logits, labels):
    logits = np.float64(logits)
    chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(chance, labels[..., None], -1))[..., 0]

  right = np.asarray(of_image).argmax(-1) == codes
  return lost(of_text, labels), lost(of_image, codes), right


@pytest.mark.parametrize('learns_padding', [False, True])
def test_loss_by_hand(learns_padding):
  task = make(learns_padding=learns_padding, text_weight=0.2)
  given, examples = variables(task), batch()
  tokens = np.asarray(examples['text'])
  real = np.arange(8) <= (tokens == END).argmax(1)[:, None]
  assert not real.all()
  text = np.where(real, tokens, -1)
  of_text, of_image, right = by_hand(task, given, jnp.asarray(text))
  counts = np.ones_like(real) if learns_padding else real

  loss, metrics, others = jax.jit(task.loss)(given, examples, KEY, 0)
  text_loss, image_loss = of_text[counts].mean(), of_image.mean()
  np.testing.assert_allclose(metrics['text_loss'], text_loss, rtol=1e-5)
  np.testing.assert_allclose(metrics['image_loss'], image_loss, rtol=1e-5)
  np.testing.assert_allclose(
    metrics['image_perplexity'], np.exp(image_loss), rtol=1e-5
  )
  np.testing.assert_allclose(
    loss, 0.2 * text_loss + 0.8 * image_loss, rtol=1e-5
  )
  np.testing.assert_allclose(metrics['image_accuracy'], right.mean())
  np.testing.assert_allclose(metrics['truncated'], 1 / 3)
  assert others == {}

  each = jax.jit(task.metrics)(given, examples)
  by_text = (of_text * counts).sum(1) / counts.sum(1)
  np.testing.assert_allclose(each['text_loss'], by_text, rtol=1e-5)
  np.testing.assert_allclose(each['image_loss'], of_image.mean(1), rtol=1e-5)
  np.testing.assert_allclose(each['image_accuracy'], right.mean(1))
  np.testing.assert_allclose(
    each['loss'], 0.2 * by_text + 0.8 * of_image.mean(1), rtol=1e-5
  )


def test_captions_are_left_out_in_training_only():
  task = make(caption_dropout=0.5)
  given, examples = variables(task), batch()
  real = dalle.mark_padding(examples['text'])
  nothing = jnp.full_like(real, dalle.NO_TOKEN)
  of_text, of_image, _ = by_hand(task, given, real)
  _, without, _ = by_hand(task, given, nothing)
  counts = np.asarray(real) >= 0
  seen = set()
  loss = jax.jit(lambda key: task.loss(given, examples, key, 0)[1])
  for seed in range(30):
    metrics = loss(jax.random.key(seed))
    # Which of the three were left out is told by the loss of the images.
    fits = []
    for choice in np.ndindex(2, 2, 2):
      kept = np.array(choice, bool)[:, None]
      image_loss = np.where(kept, of_image, without).mean()
      if abs(image_loss - metrics['image_loss']) < 1e-5:
        fits.append(choice)
        total = (counts & kept).sum()
        expected = (of_text * (counts & kept)).sum() / max(total, 1)
        np.testing.assert_allclose(metrics['text_loss'], expected, rtol=1e-4)
    assert len(fits) == 1
    seen.add(fits[0])
  assert len(seen) > 4
  evaluated = task.loss(given, examples, KEY, 0, train=False)[1]
  np.testing.assert_allclose(evaluated['image_loss'], of_image.mean(), 1e-5)


def test_codes_may_be_given_and_the_frozen_model_does_not_learn():
  task = make()
  given, examples = variables(task), batch()
  codes = task.encode(given, examples['image']).reshape(3, 6)
  ready = {**examples, 'codes': codes}
  del ready['image']
  loss = jax.jit(lambda given, batch: task.loss(given, batch, KEY, 0)[0])
  np.testing.assert_array_equal(loss(given, ready), loss(given, examples))
  gradients = jax.grad(loss)(given, examples)
  assert gradients['frozen']['params']['scale'] == 0
  alone = make(vae=None)
  assert alone.batch_spec(3)['codes'].shape == (3, 6)
  assert 'image' not in alone.batch_spec(3)
  params = {'params': given['params']}
  np.testing.assert_allclose(
    alone.loss(params, ready, KEY, 0)[0], loss(given, ready), rtol=1e-6
  )


def test_codes_have_the_vectors_of_the_discrete_vae():
  task = make(sizes={'code_width': 3})
  vectors = task.init(KEY)['constants']['code_vectors']
  np.testing.assert_allclose(
    vectors, np.arange(15).reshape(5, 3) / np.arange(15).std(), rtol=1e-6
  )
  # One that a checkpoint will bring has shapes already.
  task.frozen.variables = None
  later = jax.eval_shape(task.init, KEY)['constants']['code_vectors']
  assert later.shape == vectors.shape


def test_samples_and_pictures():
  task = make()
  given, examples = variables(task), batch()
  keys = decoding.candidate_keys(0, 3, 2)
  codes = task.sample(given, examples['text'], keys, decoding.Sampling())
  assert codes.shape == (3, 2, 6)
  # What follows the end of a text means nothing.
  other = examples['text'].at[1, 7].set(5)
  again = task.sample(given, other, keys, decoding.Sampling())
  np.testing.assert_array_equal(codes, again)
  examples['mask'] = jnp.asarray([1, 0, 1])
  ((name, figure),) = task.pictures(given, [examples])
  assert name == 'samples' and isinstance(figure, Figure)
  titles = [axes.get_title() for axes in figure.axes[:2]]
  assert titles == ['a b', 'much to']
  assert len(figure.axes) == 2 * 5
  shown = np.asarray(figure.axes[1].images[0].get_array())
  np.testing.assert_array_equal(shown, examples['image'][2, ..., 0])
  # The first is enough, and nothing is compiled for another sheet.
  compiled = watch.compilations()
  before, others = compiled['count'], iter([examples] * 2)
  assert [name for name, _ in task.pictures(given, others)] == ['samples']
  assert compiled['count'] == before and len(list(others)) == 1
  assert task.sheets == ('samples',)


@pytest.mark.parametrize(
  'fields,message',
  [
    ({'text_weight': 1.0}, 'text_weight is 1.0'),
    ({'caption_dropout': -0.1}, 'caption_dropout is -0.1'),
    ({'model': ViT(variant='mu/4')}, "name 'dalle', not by a ViT"),
    ({'image_shape': (8, 6, 1)}, r'these are \(8, 6, 1\)'),
    ({'sizes': {'grid': (3, 2)}}, r'set grid=\(2, 3\)'),
    ({'sizes': {'image_vocabulary': 7}}, 'image_vocabulary=5'),
    ({'sizes': {'code_width': 4}}, 'has vectors of 3 values'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    make(**fields)


def test_what_draws_codes_of_another_model_makes_none():
  with pytest.raises(ValueError, match='runs/x, where TextToImage'):
    text_to_image.check_makes_codes(make(), 'runs/x')
