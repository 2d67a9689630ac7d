"""Images with texts through the whole trainer, and what is made of it."""

import io
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import evaluate, predict
from vit_jax.config import ConfigError
from vit_jax.data import captions
from vit_jax.training import (
  baseline,
  flops,
  init_from,
  loop,
  matching,
  rules,
  saved,
  schema,
  speed,
  state,
  trained,
)
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib

SHAPES = 'shapes:pixels=16'
VIT = dict(name='vit', patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32)
RESNET = dict(name='modified_resnet', stages=(1, 1, 1, 1), width=8, num_heads=2)
CLIP = dict(
  task=dict(name='contrastive'),
  model=dict(
    name='clip',
    width=16,
    image=VIT,
    text=dict(
      vocabulary_size=587, length=16, width=16, depth=1, num_heads=2,
      mlp_dim=32, dropout=0.1,
    ),
  ),
  data=dict(
    train=dict(
      source=SHAPES, split='train', preprocess='value_range(-1, 1)'
    ),
    test=dict(
      source=SHAPES, split='test[:30]', preprocess='value_range(-1, 1)'
    ),
  ),
  batch_size=16,
  total='6steps',
  optimizer=dict(name='adamw', learning_rate=1e-2),
  schedule=dict(name='constant'),
  eval=dict(every='100%', retrieval='all'),
  checkpoint=dict(every='3steps', keep=3),
  log_every='1steps',
)  # fmt: skip


def config(*overrides, **sections):
  arguments = [f'--config.{override}' for override in overrides]
  return config_lib.resolve(CLIP | sections, arguments, schema.SCHEMA)


def with_resnet(*overrides):
  image = dict(RESNET)
  model = CLIP['model'] | dict(image=image, image_head='affine')
  small = dict(source='shapes:pixels=32', preprocess='value_range(-1, 1)')
  data = dict(
    train=small | dict(split='train'), test=small | dict(split='test')
  )
  return config(*overrides, model=model, data=data)


def train(settings, workdir):
  console = Console(file=io.StringIO(), width=80)
  loop.train(run_lib.prepare(settings), workdir, console)
  return console.file.getvalue()


def call(main, *arguments):
  console = Console(file=io.StringIO(), width=300)
  main([str(argument) for argument in arguments], console)
  return console.file.getvalue()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('clip') / 'run'
  train(config(), folder)
  return folder


def one_step(settings):
  """Returns the state after one step, and its metrics."""
  run = run_lib.prepare(settings)
  with jax.set_mesh(run.mesh):
    before = jax.device_get(run.init())
    batches = inputs_lib.train_batches(settings, run.inputs, run.mesh, 0, print)
    after, metrics = run.train_step(run.init(), next(batches))
    batches.close()
  return before, jax.device_get(after), jax.device_get(metrics)


def test_it_is_scored_while_it_trains(workdir):
  rows = [json.loads(x) for x in (workdir / 'metrics.jsonl').open()]
  last = {key: value for row in rows for key, value in row.items()}
  for name in (
    'train/scale', 'train/truncated', 'train/duplicates', 'test/similarity',
    'retrieval/image_to_text_recall_5', 'retrieval/text_to_image_median_rank',
  ):  # fmt: skip
    assert np.isfinite(last[name]), name
  assert last['train/truncated'] == 0
  assert (workdir / 'report' / 'matches.png').exists()


def test_a_run_goes_on_exactly(workdir, tmp_path):
  train(config('total=3steps'), tmp_path)
  assert saved.Checkpoints(tmp_path / 'checkpoints').steps() == [3]
  assert 'Going on from step 3' in train(config(), tmp_path)
  (again, _, end), (whole, _, step) = (
    saved.Checkpoints(folder / 'checkpoints').load()
    for folder in (tmp_path, workdir)
  )
  assert end == step == 6
  jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_no_batch_of_a_run_has_a_caption_twice():
  twice = (
    f'data.train.source={SHAPES} + {SHAPES}', 'data.train.split=train[:20]',
  )  # fmt: skip

  def most(unique):
    """Returns how often a caption comes in a batch, at most."""
    settings = config(*twice, f'data.text.unique={unique}')
    run = run_lib.prepare(settings)
    batches = inputs_lib.train_batches(settings, run.inputs, run.mesh, 5, print)
    identities = [np.asarray(next(batches)['identity']) for _ in range(4)]
    batches.close()
    assert {len(batch) for batch in identities} == {16}
    return max(np.unique(x, return_counts=True)[1].max() for x in identities)

  assert most(unique=False) == 2 and most(unique=True) == 1


def test_parts_of_a_batch_are_as_good_as_the_whole():
  # Plain steps, so that what is compared is the gradient.
  plain = dict(name='sgd', learning_rate=0.1, momentum=0.0)
  model = CLIP['model'] | dict(text=CLIP['model']['text'] | dict(dropout=0.0))
  results = [
    one_step(config(model=model, optimizer=plain | dict(accumulate=parts)))
    for parts in (1, 2)
  ]
  (_, whole, metrics), (_, parts, others) = results
  np.testing.assert_allclose(metrics['loss'], others['loss'], rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    whole.params,
    parts.params,
  )


def test_lit_freezes_by_one_line(workdir):
  settings = config(
    "optimizer.freeze=('image/.*',)", f'init={workdir}', 'init.part=image',
    'init.into=image', 'optimizer.weight_decay=0.1',
  )  # fmt: skip
  before = rules.by_path(saved.read(workdir).params)
  run = run_lib.prepare(settings)
  with jax.set_mesh(run.mesh):
    begun, origin = init_from.initial_state(run)
    batches = inputs_lib.train_batches(settings, run.inputs, run.mesh, 0, print)
    after, _ = run.train_step(begun, next(batches))
    batches.close()
  assert all(path.startswith('image/') for path in origin.loaded)
  for path, value in rules.by_path(jax.device_get(after.params)).items():
    same = np.array_equal(value, before[path])
    assert same == path.startswith('image/'), path


def test_the_tower_of_a_clip_starts_a_classifier(workdir):
  settings = config_lib.resolve(
    dict(
      task=dict(name='classification'),
      model=VIT,
      data=dict(
        train=dict(
          source=f'field:shape_1:{SHAPES}', split='test',
          preprocess='value_range(-1, 1)',
        ),
        test=dict(
          source=f'field:shape_1:{SHAPES}', split='test',
          preprocess='value_range(-1, 1)',
        ),
      ),
      init=dict(path=str(workdir), part='image'),
      batch_size=16, total='1steps', eval=dict(every='100%'),
      optimizer=dict(name='sgd', learning_rate=0.1),
      schedule=dict(name='constant'), checkpoint=dict(every='100%'),
    ),
    (),
    schema.SCHEMA,
  )  # fmt: skip
  run = run_lib.prepare(settings)
  with jax.set_mesh(run.mesh):
    begun, origin = init_from.initial_state(run)
  tower = saved.read(workdir).params['image']
  found = jax.device_get(begun.params)
  assert set(origin.fresh) == {'head/kernel', 'head/bias'}
  del found['head']
  jax.tree.map(np.testing.assert_array_equal, found, tower)


@pytest.mark.slow
def test_batch_norm_learns_its_statistics_and_keeps_them(tmp_path):
  before, after, _ = one_step(with_resnet())
  changed = [
    not np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (before.others, after.others)))
  ]
  assert changed and all(changed)
  train(with_resnet('total=1steps', 'checkpoint.every=1steps'), tmp_path)
  model = trained.load(tmp_path)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    jax.device_get(model.variables['batch_stats']),
    after.others['batch_stats'],
  )


@pytest.mark.parametrize(
  'settings, words',
  [
    (lambda: with_resnet('optimizer.accumulate=2'), 'batch norm'),
    (lambda: config('model.text.vocabulary_size=600'), 'make it 587'),
    (lambda: config('data.train.source=digits'), 'no captions'),
    (lambda: config('data.text.unique=true'), 'no end'),
    (lambda: config('init.path=nowhere', 'init.part=x'), None),
  ],
)
def test_what_cannot_work_is_said_first(settings, words):
  if words is None:  # Only where the run starts.
    run_lib.prepare(settings())
    return
  with pytest.raises(ConfigError, match=words):
    run_lib.prepare(settings())


def test_it_is_evaluated_by_its_own_words(workdir, tmp_path, monkeypatch):
  monkeypatch.setattr(baseline, '_MOST', 500)
  labels = f'--source=field:shape_1:{SHAPES}'
  report = tmp_path / 'report.md'
  text = call(
    evaluate.main, f'--workdir={workdir}', labels, f'--report={report}',
    '--tasks=metrics,retrieval,zero_shot,linear_probe,robustness',
    '--train-split=test', '--baseline',
  )  # fmt: skip
  for name in (
    'image_to_text', 'retrieval/text_to_image_recall_1', 'zero_shot/accuracy',
    'linear_probe/accuracy', 'robustness/mean',
  ):  # fmt: skip
    assert name in text
  page = report.read_text()
  assert 'chance' in page and 'Zero-shot' in page
  # A baseline knows the colours of shapes, of the very same candidates.
  table = [
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in page.splitlines()
    if line.count('|') == 8
  ]
  model, ngrams, chance = table[2:5]
  assert (ngrams[0], chance[0]) == ('n-grams of colours', 'chance')
  assert model[5:] == ngrams[5:] == chance[5:]
  assert float(ngrams[2]) > 2 * float(chance[2])
  (recall,) = re.findall(r'  baseline/image_to_text_recall_5 +(\S+)', text)
  assert 100 * float(recall) == pytest.approx(float(ngrams[2]), abs=0.06)
  (similarity,) = re.findall(r'  similarity +(\S+)', text)
  assert re.search(rf'\| similarity +\| +{similarity} \|', page)
  with pytest.raises(ConfigError, match="--source='field:NAME:shapes"):
    call(evaluate.main, f'--workdir={workdir}', '--tasks=zero_shot')
  with pytest.raises(ConfigError, match='--baseline is read only by retrieval'):
    call(evaluate.main, f'--workdir={workdir}', '--baseline')
  with pytest.raises(ConfigError, match='not measured'):
    call(evaluate.main, f'--workdir={workdir}', '--tasks=retrival')


def test_images_are_found_by_words(workdir, tmp_path):
  source = captions.open_source(SHAPES, 'test')
  images = [source[number]['image'] for number in range(5)]
  for number, image in enumerate(images):
    Image.fromarray(image).save(tmp_path / f'{number}.png')
  matcher = matching.Matcher(trained.load(workdir))
  best, scores = matcher.rerank(images, 'a red circle', 2)
  assert scores.shape == (5,) and best == np.argsort(-scores)[:2].tolist()
  sheet = tmp_path / 'sheet.png'
  text = call(
    predict.main, f'--workdir={workdir}', '--search=a red circle',
    f'--images={tmp_path}', f'--output={sheet}', '--top=2',
  )  # fmt: skip
  names = [line.split()[1] for line in text.splitlines()[:2]]
  assert [int(pathlib.Path(name).stem) for name in names] == best
  assert f'{scores[best[0]]:.4f}' in text and Image.open(sheet).width > 200
  text = call(
    predict.main, f'--workdir={workdir}', '--labels=a circle|a square',
    tmp_path / '0.png',
  )  # fmt: skip
  assert 'a circle' in text and 'a square' in text
  with pytest.raises(ConfigError, match='--labels'):
    call(predict.main, f'--workdir={workdir}', tmp_path / '0.png')


GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


@pytest.mark.parametrize(
  'name, told',
  [('clip_vit_head64', {}), ('clip_resnet', {'text_heads': 2})],
)
def test_released_models_are_read_whole(name, told, tmp_path):
  with np.load(GOLDENS / f'{name}.npz') as golden:
    prefix = 'params/'
    tensors = {
      key.removeprefix(prefix): golden[key]
      for key in golden.files
      if key.startswith(prefix)
    }
    image, expected = golden['input/image'], golden['output/image_features']
  np.savez(tmp_path / 'clip.npz', **tensors)
  model = trained.load(
    tmp_path / 'clip.npz',
    overrides=['--config.data.text.tokenizer='],
    told={'activation': 'quick_gelu', **told},
  )
  features, inside = model.task.encode_image(
    model.variables, image.transpose(0, 2, 3, 1)
  )
  scale = max(1, np.abs(expected).max())
  np.testing.assert_allclose(inside['projected'], expected, atol=1e-4 * scale)
  assert model.config.data.test.preprocess.startswith('resize_small(')
  with pytest.raises(ConfigError, match='no tokenizer'):
    matching.Matcher(model)


def test_shapes_of_state_do_not_depend_on_others():
  """Runs from before there were other variables can be read."""
  assert jax.tree.leaves(state.State(0, {}, {}, (), None, 0).others) == []


def test_meshes_agree():
  results = []
  for devices in (1, 8):
    run = run_lib.prepare(config(), jax.devices()[:devices])
    with jax.set_mesh(run.mesh):
      batch = next(
        inputs_lib.train_batches(run.config, run.inputs, run.mesh, 0, print)
      )
      _, metrics = run.train_step(run.init(), batch)
    results.append(jax.device_get(metrics))
  assert mesh_lib.batch_shards(run.mesh) == 8
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    *results,
  )


@pytest.mark.slow
def test_combinations_that_were_never_seen_are_found(tmp_path):
  path = pathlib.Path(__file__).parents[2] / 'configs' / 'clip_shapes.py'
  settings = config_lib.resolve(
    config_lib.load(str(path)), ['--config.total=500steps'], schema.SCHEMA
  )
  train(settings, tmp_path)
  rows = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').open()]
  last = {key: value for row in rows for key, value in row.items()}
  # Chance is 0.7 %.
  assert last['retrieval/image_to_text_recall_1'] > 0.9
  assert last['retrieval/text_to_image_recall_1'] > 0.9


def test_embedding_is_measured_of_images_and_of_texts():
  run = run_lib.prepare(config(), jax.devices()[:1])
  with jax.set_mesh(run.mesh):
    found = speed.inference(run, 1)
  assert found['images/s per core'] > 0 and found['texts/s per core'] > 0
  # Features alone: what else the towers would give is not computed.
  forward = found['GFLOP per image'] + found['GFLOP per text']
  np.testing.assert_allclose(
    3e9 * forward, flops.training_flops(run.task), rtol=0.02
  )
