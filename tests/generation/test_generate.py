"""From texts to files of pictures, and back to how they were made."""

import dataclasses
import io
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin
from rich.console import Console

from vit_jax import evaluate, generate
from vit_jax.config import ConfigError
from vit_jax.data import shapes, tokenizer
from vit_jax.generation import feature_networks, pictures, scores
from vit_jax.generation.sampler import Sampler, Wanted
from vit_jax.models import dalle, decoding, discrete_vae
from vit_jax.tasks import text_to_image
from vit_jax.tasks.discrete_vae import DiscreteVae
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import trained

WORDS = tokenizer.Tokenizer((), 8)


@pytest.fixture(scope='module')
def model():
  """A trained model in all but training."""
  codes = DiscreteVae(
    discrete_vae.DiscreteVae(
      width=8, blocks_per_group=1, groups=2, vocabulary_size=11, code_width=4,
      stem_size=3, patch_size=4, codebook_std=1.0,
    ),
    (32, 32, 3),
  )  # fmt: skip
  task = text_to_image.TextToImage(
    model=dalle.DallE(
      text_vocabulary=WORDS.size, text_length=8, image_vocabulary=11,
      grid=(4, 4), width=8, depth=1, mlp_dim=8, num_heads=1,
    ),
    image_shape=(32, 32, 3),
    tokenizer=WORDS,
    frozen=types.SimpleNamespace(task=codes, variables=None),
    caption_dropout=0.1,
  )  # fmt: skip
  text, image = jnp.zeros((1, 8), int), jnp.zeros((1, 16), int)
  params = jax.eval_shape(task.model.init, jax.random.key(0), text, image)
  # Which codes are likely depends on the text, and on the codes before.
  params = jax.tree.map(
    lambda x: np.random.default_rng(x.size).normal(0, 0.4, x.shape), params
  )
  params = params['params']
  frozen = jax.jit(codes.init)(jax.random.key(1))
  config = ConfigDict(
    dict(
      model=dict(name='dalle'),
      task=dict(name='text_to_image'),
      data=dict(test=dict(preprocess='value_range(0, 1)')),
    )
  )
  mesh = mesh_lib.make(mesh_lib.Settings())
  variables = jax.device_put(
    {'params': params, 'frozen': frozen},
    jax.NamedSharding(mesh, jax.P()),
  )
  return trained.Trained(config, task, mesh, variables, 7, False)


class Darkest:
  """Thinks that the darkest picture is what any text says."""

  def score(self, images, texts):
    dark = [-image.mean() / 255 for image in images]
    return np.tile(np.array(dark)[:, None], (1, len(texts)))

  def rerank(self, images, text, count):
    values = self.score(images, [text])[:, 0]
    return np.argsort(-values)[:count].tolist(), values


@pytest.fixture(autouse=True)
def no_files(model, monkeypatch):
  monkeypatch.setattr(trained, 'load', lambda path, *unused, **told: model)
  monkeypatch.setattr(
    generate.matching, 'Matcher', lambda unused_model: Darkest()
  )


def call(*arguments):
  console = Console(file=io.StringIO(), width=300)
  generate.main([str(argument) for argument in arguments], console)
  return console.file.getvalue()


RUN = ('--workdir=somewhere', '--prompt=a red circle')


def test_the_best_are_kept_and_made_again(tmp_path):
  text = call(
    *RUN, '--count=12', '--rerank=3', '--clip=other', '--seed=5', '--top-k=0.5',
    '--top-p=0.9', '--temperature=0.8', '--guidance=1.5', f'--out={tmp_path}',
  )  # fmt: skip
  assert '3 pictures' in text and 'pictures/s' in text
  assert {path.name for path in tmp_path.iterdir()} == {
    '1.png', '2.png', '3.png', 'sheet.png'
  }  # fmt: skip
  found = [pictures.read(tmp_path / f'{n}.png') for n in (1, 2, 3)]
  values = [picture.score for picture in found]
  assert values == sorted(values, reverse=True) and len(set(values)) > 1
  assert values == [Darkest().score([x.image], [''])[0, 0] for x in found]
  assert found[0].facts['seed'] == 5 and found[0].facts['top_fraction'] == 0.5
  assert found[0].facts['step'] == 7 and found[0].facts['top_k'] is None
  with Image.open(tmp_path / '1.png') as file:
    assert file.info['Description'] == 'a red circle'
    assert json.loads(file.info['vit_jax.generate'])['score'] == values[0]
  text = call(f'--from={tmp_path / "2.png"}', f'--out={tmp_path / "again"}')
  assert 'every pixel as before' in text
  again = pictures.read(tmp_path / 'again' / '2.png')
  np.testing.assert_array_equal(again.image, found[1].image)
  assert again.facts == found[1].facts
  # The sheet shows what the scores have left, in their order.
  sheet = pictures.read(tmp_path / 'sheet.png')
  shown, _ = pictures.shown(sheet)
  assert shown == [(x.facts, x.score) for x in found]
  text = call(f'--from={tmp_path / "sheet.png"}', f'--out={tmp_path / "again"}')
  assert 'every pixel as before' in text
  assert pictures.read(tmp_path / 'again' / 'sheet.png').facts == sheet.facts


def test_what_a_released_clip_leaves_out_is_told(model, monkeypatch):
  def load(path, *unused, told=None):
    if str(path) == 'other':
      raise ConfigError(f'told {told}')
    return model

  monkeypatch.setattr(trained, 'load', load)
  message = "--clip=other: told {'activation': 'gelu', 'image_heads': 3}"
  with pytest.raises(ConfigError, match=message):
    call(
      *RUN, '--out=x', '--clip=other', '--activation=gelu', '--image-heads=3'
    )


def test_several_texts_each_have_their_own(tmp_path):
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('a red circle\n\na blue square\n')
  out = tmp_path / 'out'
  call(
    '--workdir=x', f'--prompts={prompts}', '--count=2', '--temperature=0',
    f'--out={out}',
  )  # fmt: skip
  names = {path.name for path in out.iterdir()}
  assert names == {
    f'{line}-{rest}.png' for line in '12' for rest in ('1', '2', 'sheet')
  }
  for line, text in enumerate(('a red circle', 'a blue square'), 1):
    found = [pictures.read(out / f'{line}-{n}.png') for n in (1, 2)]
    assert [picture.facts['prompt'] for picture in found] == [text] * 2
    # At a temperature of 0 there is nothing random.
    np.testing.assert_array_equal(found[0].image, found[1].image)


def test_a_picture_is_completed(model, tmp_path):
  scene = shapes.parse_caption('a large black square in the middle')
  image = shapes.draw(scene, 32, np.random.default_rng(0))
  Image.fromarray(image).save(tmp_path / 'given.png')
  out = tmp_path / 'out'
  call(
    *RUN, f'--complete={tmp_path / "given.png"}', '--rows=2', '--count=3',
    f'--out={out}',
  )  # fmt: skip
  sampler = Sampler(model)
  (codes,) = sampler.encode([image])
  facts = pictures.read(out / '1.png').facts
  assert facts['given'] == codes[:2].tolist()
  sampling = decoding.Sampling()
  sample = jax.jit(model.task.sample)
  keys = decoding.candidate_keys(0, 1, 3)
  drawn = sample(
    model.variables, WORDS(['a red circle'])[0], keys, sampling,
    codes[:2].reshape(1, -1),
  ).reshape(3, 4, 4)  # fmt: skip
  assert (np.asarray(drawn)[:, :2] == codes[:2]).all()
  expected = sampler.decode(np.asarray(drawn))
  for number in range(3):
    found = pictures.read(out / f'{number + 1}.png').image
    np.testing.assert_allclose(found.astype(int), expected[number], atol=1)
  for name in ('3.png', 'sheet.png'):
    text = call(f'--from={out / name}', f'--out={tmp_path / "again"}')
    assert 'every pixel as before' in text


def test_an_image_of_another_size_is_refused_with_what_helps(
  model, tmp_path, monkeypatch
):
  Image.new('RGB', (40, 30), 'red').save(tmp_path / 'given.png')
  options = (
    *RUN, f'--complete={tmp_path / "given.png"}', '--rows=2', '--count=1',
    f'--out={tmp_path / "out"}',
  )  # fmt: skip
  with pytest.raises(ConfigError, match=r"put 'resize\(32\)\|' before"):
    call(*options)
  config = model.config.copy_and_resolve_references()
  config.data.test.preprocess = f'resize(32)|{config.data.test.preprocess}'
  resized = dataclasses.replace(model, config=config)
  monkeypatch.setattr(trained, 'load', lambda path, *unused, **told: resized)
  call(*options)
  assert (tmp_path / 'out' / '1.png').exists()


def test_pictures_are_replaced_only_when_asked(tmp_path):
  out, other = tmp_path / 'out', tmp_path / 'other'
  call(*RUN, '--count=3', f'--out={out}')
  before = (out / '1.png').read_bytes()
  again = (*RUN, '--count=1', '--seed=3', f'--out={out}')
  with pytest.raises(ConfigError, match=r'1\.png.*\(--overwrite\)'):
    call(*again)
  assert (out / '1.png').read_bytes() == before
  # Of others, by their content or their name, whatever may be asked.
  Image.new('RGB', (8, 8)).save(out / '7.png')
  (out / 'mine.png').write_bytes(before)
  for option in ('--overwrite', '--seed=4'):
    with pytest.raises(ConfigError, match='name another folder'):
      call(*again, option, f'--complete={out / "mine.png"}', '--rows=2')
  call(*again, '--overwrite')
  names = {path.name for path in out.iterdir()}
  assert names == {'1.png', 'sheet.png', '7.png', 'mine.png'}
  assert pictures.read(out / '1.png').facts['seed'] == 3
  call(f'--from={out / "1.png"}', f'--out={other}')
  with pytest.raises(ConfigError, match=r'1\.png is there.*\(--overwrite\)'):
    call(f'--from={out / "1.png"}', f'--out={other}')
  call(f'--from={out / "1.png"}', f'--out={other}', '--overwrite')
  (tmp_path / 'linked.png').symlink_to(out / '1.png')
  with pytest.raises(ConfigError, match='name another folder'):
    call(
      f'--from={tmp_path / "linked.png"}', f'--out={tmp_path}', '--overwrite'
    )


def refuses(*unused):
  raise ValueError('the image is small. Resize it.')


def never(*unused):
  pytest.fail('something was drawn')


def test_a_clip_that_cannot_look_is_refused_before_drawing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(Darkest, 'score', refuses)
  monkeypatch.setattr(Sampler, 'draw', never)
  with pytest.raises(ConfigError, match='--clip names .* image is small'):
    call(*RUN, '--clip=other', f'--out={tmp_path / "out"}')


def test_guidance_needs_texts_that_were_left_out(model, tmp_path, monkeypatch):
  task = dataclasses.replace(model.task, caption_dropout=0.0)
  never = dataclasses.replace(model, task=task)
  monkeypatch.setattr(trained, 'load', lambda path, *unused, **told: never)
  with pytest.raises(ConfigError, match='leave it out'):
    call(*RUN, '--guidance=3', f'--out={tmp_path / "out"}')
  assert not (tmp_path / 'out').exists()
  sampler = Sampler(never)
  wanted = [Wanted('one', 0, 0)]
  for guidance in (0.0, 3.0):
    with pytest.raises(ConfigError, match=r'guidance is .*caption_dropout=0 '):
      next(sampler.draw(wanted, 3, decoding.Sampling(guidance=guidance)))
  # Here what is drawn without a text does not count.
  assert len([*sampler.draw(wanted, 3, decoding.Sampling(guidance=1.0))]) == 1


def test_pictures_do_not_depend_on_others(model):
  sampler, sampling = Sampler(model), decoding.Sampling()
  many = [
    Wanted(text, line, number)
    for line, text in enumerate(('one', 'two', 'three'))
    for number in range(20)
  ]
  images = list(sampler.draw(many, 3, sampling))
  assert len(images) == 60
  for place in (0, 19, 20, 33, 59):
    (alone,) = sampler.draw([many[place]], 3, sampling)
    np.testing.assert_array_equal(alone, images[place])
  assert len({image.tobytes() for image in images}) > 40
  (other,) = sampler.draw(many[:1], 4, sampling)
  assert not np.array_equal(other, images[0])


def test_pictures_of_one_text_are_spread_over_devices(model):
  sampler, seen = Sampler(model), []

  def draw(unused_variables, tokens, keys, *unused):
    seen.append((tokens, keys))
    return np.zeros((*keys.shape, 1, 1, 3))

  sampler._draw = draw
  wanted = [Wanted('one', 0, number) for number in range(16)]
  assert len([*sampler.draw(wanted, 3, decoding.Sampling())]) == 16
  ((tokens, keys),) = seen
  assert keys.shape == (8, 2) and tokens.shape == (8, 8)
  shards = keys.addressable_shards
  assert len({shard.device for shard in shards}) == 8
  # Each device draws pictures of its own, not those of another once more.
  drawn = [jax.random.key_data(shard.data) for shard in shards]
  assert {part.shape for part in drawn} == {(1, 2, 2)}
  assert len(np.unique(np.concatenate(drawn).reshape(16, 2), axis=0)) == 16


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((), '--out is missing'),
    (('--out=x',), '--prompt=TEXT or'),
    (('--out=x', '--prompt=a', '--prompts=b'), '--prompt=TEXT or'),
    (('--out=x', '--prompt=a'), '--workdir is missing'),
    ((f'--out={__file__}/x', *RUN), 'test_generate.py is a file'),
    (('--out=x', *RUN, '--count=0'), 'draws nothing'),
    (('--out=x', *RUN, '--rerank=2'), '--clip'),
    (('--out=x', *RUN, '--rerank=9', '--clip=y'), 'cannot be kept'),
    (('--out=x', *RUN, '--text-heads=2'), '--text-heads .* by --clip'),
    (('--out=x', *RUN, '--rows=2'), 'both or neither'),
    (('--out=x', *RUN, '--complete=none.png', '--rows=4'), '1 to 3'),
    (('--out=x', *RUN, '--complete=none.png', '--rows=1'), 'No such file'),
    (('--out=x', '--prompt='), 'guidance=0'),
    (('--out=x', '--prompt= ', '--prompts=b'), 'guidance=0'),
    (('--out=x', *RUN, '--top-k=ten'), '^--top-k=ten: use .* such as 64'),
    (('--out=x', *RUN, '--top-k=1.5'), '^--top-k=1.5: use .* such as 64'),
    (('--out=x', *RUN, '--top-k=0'), '^--top-k=0: use .* such as 64'),
    (('--out=x', *RUN, '--top-k=2147483648'), '^--top-k=2147483648: use'),
    (('--out=x', *RUN, '--top-p=2'), '^--top-p=2.0: use a .* from 0 to 1.$'),
    (('--out=x', *RUN, '--temperature=-1'), '=-1.0: use a .* 0 or more.$'),
    (('--out=x', *RUN, '--guidance=inf'), '=inf: use a finite'),
    (('--out=x', '--from=none.png'), 'can be read'),
    (('--out=x', '--from=none.png', '--prompt=a'), 'leave out --prompt'),
    (('--out=x', '--from=none.png', '--top-k=3'), 'leave out --top-k'),
    # What is the default, too.
    (('--out=x', '--from=none.png', '--seed=0'), 'leave out --seed'),
    (('--out=.', '--from=none.png'), 'overwritten'),
    (('--out=x', *RUN, '--seed=-1'), 'below'),
    (('--out=x', *RUN, '--cuont=3'), 'Did you mean'),
  ],
)
def test_what_cannot_be_drawn_is_said(arguments, message):
  with pytest.raises(ConfigError, match=message):
    call(*arguments)


def test_pictures_of_others_are_refused(model, tmp_path):
  Image.new('RGB', (8, 8)).save(tmp_path / 'plain.png')
  with pytest.raises(ConfigError, match='does not say how'):
    call(f'--from={tmp_path / "plain.png"}', f'--out={tmp_path / "out"}')
  for said in ('{', '[]', '3', '{"prompt": "a"}'):
    facts = PngImagePlugin.PngInfo()
    facts.add_itxt('vit_jax.generate', said)
    Image.new('RGB', (8, 8)).save(tmp_path / 'some.png', pnginfo=facts)
    with pytest.raises(ConfigError, match='does not say all of how'):
      call(f'--from={tmp_path / "some.png"}', f'--out={tmp_path / "out"}')
  no_text = dataclasses.replace(model, task=model.task.frozen.task)
  with pytest.raises(ConfigError, match='does not draw'):
    Sampler(no_text)
  with pytest.raises(ConfigError, match='no features'):
    feature_networks.of_trained(model)


def test_they_are_scored(model):
  sampler = Sampler(model)
  source = shapes.shapes('pixels=32')['test']()
  pairs = scores.read(sampler, source, 24)
  np.testing.assert_array_equal(pairs.images[3], source[3]['image'])
  network = scores.picture_quality.Network(
    'means', lambda images: (np.stack([x.mean((0, 1)) for x in images]), None)
  )
  figures, notes = scores.evaluate(
    sampler, pairs, sampling=decoding.Sampling(), best_of=3, matcher=Darkest(),
    network=network,
  )  # fmt: skip
  assert figures['generation/captions'] == 24
  for name in ('single', 'best_of_3', 'codes', 'chance'):
    assert 0 <= figures[f'generation/{name}_all'] <= 1
  assert (
    figures['generation/best_of_3_clip_cosine']
    > figures['generation/single_clip_cosine']
  )
  mean = -np.mean(pairs.images) / 255
  assert figures['generation/real_clip_cosine'] == pytest.approx(mean)
  assert figures['generation/means_frechet'] > 0
  assert any('24 generated' in note for note in notes)
  with pytest.raises(ConfigError, match='--clip'):
    scores.evaluate(sampler, pairs, sampling=decoding.Sampling(), best_of=2)


class Truth:
  """Sees whether a picture is what a text says."""

  def score(self, images, texts):
    rows = [[scores.shapes_checker.check(x, y) for y in texts] for x in images]
    return np.array([[np.mean([*y.values()]) for y in row] for row in rows])


def test_the_best_of_what_is_drawn_counts(model):
  """Of every two pictures the second is right, and Truth knows it."""
  sampler = Sampler(model)
  pairs = scores.read(sampler, shapes.shapes('pixels=32')['test'](), 12)

  def draw(wanted, *unused):
    for one in wanted:
      scene = shapes.parse_caption(one.text)
      if not one.number:
        scene = dataclasses.replace(scene, place='at the top left')
      yield shapes.draw(scene, 32, np.random.default_rng(1))

  sampler.draw = draw
  figures, _ = scores.evaluate(
    sampler, pairs, sampling=decoding.Sampling(), best_of=2, matcher=Truth()
  )
  right = np.mean([x.endswith('at the top left') for x in pairs.captions])
  assert figures['generation/single_all'] == pytest.approx(right)
  assert figures['generation/best_of_2_all'] == 1
  assert figures['generation/best_of_2_clip_cosine'] == 1
  assert figures['generation/real_clip_cosine'] == 1
  assert figures['generation/single_shape'] == 1
  assert figures['generation/chance_all'] < 0.3


@pytest.fixture
def tested(model, monkeypatch):
  """Returns what `evaluate --tasks=generation` prints of six captions."""
  config = model.config.copy_and_resolve_references()
  config.batch_size = 8
  config.eval = dict(batch_size=None)
  config.data.test.update(source='shapes:pixels=32', split='test[:6]')
  config.data.text = dict(
    characters=(0, math.inf), latin=0.0, without='', aspect=math.inf
  )

  def call(*arguments):
    found = config.copy_and_resolve_references()
    for argument in arguments:
      if argument.startswith('--config.data.test.source='):
        found.data.test.source = argument.partition('=')[2]
    changed = dataclasses.replace(model, config=found)
    monkeypatch.setattr(trained, 'load', lambda *unused, **told: changed)
    console = Console(file=io.StringIO(), width=300)
    evaluate.main(
      ['--workdir=somewhere', '--tasks=generation', *arguments], console
    )
    return console.file.getvalue()

  return call


def means(images):
  features = np.stack([x.mean((0, 1)) for x in images])
  return features, features / features.sum(1, keepdims=True)


def test_notes_are_printed(tested, monkeypatch):
  network = scores.picture_quality.Network('means', means)
  monkeypatch.setattr(feature_networks, 'of_path', lambda unused: network)
  text = tested('--network=other')
  assert 'Of 6 captions 6 are too long' in text
  assert 'generation/chance_all' in text and 'means_frechet ' in text
  assert 'Fewer than 10 have no Inception score' in text
  assert 'inception_score ' not in text
  # Another one's caption is its own.
  assert 'chance_' not in tested('--count=1')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--seed=-1'], r'--seed=-1: .* below 2\*\*32'),
    (['--seed=4294967296'], r'--seed=4294967296: .* below 2\*\*32'),
    (['--top-k=1.5'], '^--top-k=1.5'),
    (['--count=0'], '--count=0 of 6 captions'),
    (['--best-of=0'], '--best-of=0 draws nothing'),
    (['--network=other', '--count=1'], '--count=2 or more'),
    (['--network=other'], '--network names .* image is small. Resize it. Its'),
    (['--clip=other'], '--clip names .* image is small. Resize it. Its'),
    (
      ['--config.data.test.source=shapes:pixels=64'],
      r'source: picture 0 .*\(64, 64, 3\).*\(32, 32, 3\).*resize\(32\)',
    ),
  ],
)
def test_what_cannot_be_scored_is_said_before_drawing(
  tested, monkeypatch, arguments, message
):
  network = scores.picture_quality.Network('means', refuses)
  monkeypatch.setattr(feature_networks, 'of_path', lambda unused: network)
  monkeypatch.setattr(Darkest, 'score', refuses)
  monkeypatch.setattr(Sampler, 'draw', never)
  with pytest.raises(ConfigError, match=message):
    tested(*arguments)
