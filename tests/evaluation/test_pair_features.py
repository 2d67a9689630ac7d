"""Features of pairs, on any devices, of what can be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import pipeline, preprocess, tokenizer
from vit_jax.evaluation import pair_features, retrieval
from vit_jax.training import mesh as mesh_lib

WIDTH = 5


class Letters:
  """Texts are counts of letters; images hold such counts as pixels."""

  # How often each was compiled.
  images = texts = 0

  def tokens(self, texts):
    counts = [[text.count(x) for x in 'abcde'] for text in texts]
    return np.array(counts, np.int32)

  def encode_text(self, variables, tokens):
    assert tokens.shape == (16, WIDTH)
    self.texts += 1
    return tokens.astype(jnp.bfloat16) * variables['scale'], {}

  def encode_image(self, variables, image):
    self.images += 1
    return image[:, 0, :, 0] * variables['scale'], {'pooled': image}


class Pictures:
  """Some cannot be read; all have one to three captions."""

  def __init__(self, torn=()):
    rng = np.random.default_rng(0)
    self.counts = rng.integers(0, 9, (40, WIDTH))
    self.torn = torn

  def __len__(self):
    return len(self.counts)

  def __getitem__(self, index):
    if index in self.torn:
      raise OSError('torn')
    image = self.counts[index].astype(np.uint8)[None, :, None]
    return {'image': image, 'texts': self.captions(index)}

  def captions(self, index):
    text = ''.join(x * n for x, n in zip('abcde', self.counts[index]))
    return tuple(text + 'a' * more for more in range(index % 3 + 1))

  def name(self, index):
    return str(index)


@pytest.mark.parametrize('devices', [1, 8])
def test_retrieval_of_what_can_be_read(devices):
  source = Pictures(torn=(0, 7, 39))
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices()[:devices])
  task, variables = Letters(), {'scale': np.float32(0.5)}

  def batches():
    for batch in pipeline.eval_batches(
      source,
      preprocess.parse('value_range(0, 255)'),
      batch_size=16,
      max_broken=0.2,
    ):
      yield mesh_lib.to_mesh(batch, mesh)

  with jax.set_mesh(mesh):
    encoders = pair_features.Encoders(task, batch_size=16)
    images = encoders.images(variables, batches())
    texts = encoders.texts(
      variables, [x for i in range(40) for x in source.captions(i)]
    )
    result, among = encoders.retrieval(variables, batches(), source.captions)
    # Of other variables, by the same programs.
    doubled = {'scale': np.float32(1.0)}
    others = encoders.images(doubled, batches())
    encoders.texts(doubled, ['abc'] * 17)
  assert (task.images, task.texts) == (1, 1)
  chance = among.chance()
  assert texts.dtype == np.float32 and texts.shape == (79, WIDTH)
  readable = np.setdiff1d(np.arange(40), source.torn)
  np.testing.assert_array_equal(images['index'], readable)
  counts = source.counts[readable]
  np.testing.assert_array_equal(images['features'], counts / 2)
  np.testing.assert_array_equal(others['features'], counts)
  text_of = np.repeat(np.arange(40), [i % 3 + 1 for i in range(40)])
  kept = np.isin(text_of, readable)
  expected = retrieval.evaluate(counts, texts[kept], text_of[kept], readable)
  assert result == expected
  assert chance.image_to_text.queries == len(readable)
  assert result.text_to_image.queries == kept.sum()
  assert 0.5 < result.text_to_image.recalls[1] < 1


def test_captions_that_read_the_same_are_the_same():
  captions = {2: ('A cat', 'two'), 5: (' a  CAT', 'Two ', 'b'), 7: ('two',)}
  found = pair_features.candidates(np.array([2, 5, 7]), captions.__getitem__)
  assert [tokenizer.clean(text) for text in found.texts] == [
    'a cat', 'two', 'b', 'two'
  ]  # fmt: skip
  first, second, other = found.image_of
  assert first == second != other
  assert list(found.text_of) == [first, first, first, other]
