"""What a configuration of images with texts asks for is what is done."""

import collections
import io
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import evaluate
from vit_jax.config import ConfigError
from vit_jax.data import array_sources, tokenizer
from vit_jax.evaluation import corruptions
from vit_jax.tasks import contrastive_loss
from vit_jax.tasks.contrastive import Contrastive
from vit_jax.training import (
  build,
  classifying,
  evaluators,
  init_from,
  inputs,
  loop,
  matching,
  records,
  rules,
  saved,
  schema,
  scoring,
  trained,
)
from vit_jax.training import mesh as mesh_lib
from vit_jax.training import run as run_lib

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
SHAPES = 'shapes:pixels=16'
LABELS = f'field:shape_1:{SHAPES}'
TOWER = dict(width=16, depth=1, num_heads=2, mlp_dim=32)
CLIP = dict(
  task=dict(name='contrastive'),
  model=dict(
    name='clip',
    width=16,
    image=dict(name='vit', patch_size=8, **TOWER),
    text=dict(vocabulary_size=587, length=16, **TOWER),
  ),
  data=dict(
    train=dict(source=SHAPES, split='train', preprocess='value_range(-1, 1)'),
    test=dict(
      source=SHAPES, split='test[:30]', preprocess='value_range(-1, 1)'
    ),
  ),
  batch_size=16,
  total='1steps',
  optimizer=dict(name='sgd', learning_rate=0.01),
  schedule=dict(name='constant'),
  eval=dict(every='100%'),
  checkpoint=dict(every='100%'),
)


def config(*overrides, **sections):
  arguments = [f'--config.{override}' for override in overrides]
  return config_lib.resolve(CLIP | sections, arguments, schema.SCHEMA)


EVALUATION = (
  'eval.retrieval=first', f'eval.zero_shot.source={LABELS}',
  'eval.zero_shot.split=test[:40]', 'eval.few_shot.shots=(1,)',
  f'eval.few_shot.source={LABELS}', 'eval.few_shot.seeds=2',
  'eval.few_shot.train_split=test', 'eval.few_shot.test_split=test[:20]',
)  # fmt: skip


def test_the_best_may_be_by_any_figure_that_is_measured(tmp_path):
  best = 'zero_shot/accuracy'
  run = run_lib.prepare(config(*EVALUATION, f'checkpoint.best={best}'))
  loop.train(run, tmp_path, Console(file=io.StringIO(), width=80))
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
  figures = {key: value for row in rows for key, value in row.items()}
  kinds = ('retrieval/', 'zero_shot/', 'few_shot/')
  found = {x for x in figures if x.startswith(kinds) and not x.endswith('_std')}
  assert {*evaluators.names(run)} == found
  assert {best, 'few_shot/1_shot', 'retrieval/image_to_text_recall_5'} <= found
  # The very figure that the command gives.
  model = trained.load(tmp_path, 'best')
  with jax.set_mesh(model.mesh):
    scorer = scoring.Scorer(model.task, model.config, model.mesh, print)
    source = records.open_source(LABELS, 'test[:40]', (), '')
    named = classifying.named(model.config, None, source.class_names)
    result = scorer.zero_shot(model.variables, source, named)
  assert result.examples == 40
  assert figures[best] == pytest.approx(result.top_1, abs=1e-6)
  # Its own data, and its own prompts, without being told.
  report = tmp_path / 'report.md'
  text = evaluated(
    tmp_path, '--tasks=zero_shot,few_shot', '--step=best', f'--report={report}'
  )
  assert f'on {LABELS} test[:40] and {LABELS} test[:20]\n' in text
  assert re.search(f'{best} +{result.top_1:.4f}', text)
  for name in ('few_shot/1_shot', 'few_shot/1_shot_std'):
    assert re.search(f'{name} +{figures[name]:.4f}', text)
  mean = f'{100 * figures["few_shot/1_shot"]:.1f}'
  assert re.search(
    rf'Few-shot[^#]+test\[:20\] \| +{mean} ±', report.read_text()
  )
  text = evaluated(tmp_path, '--tasks=zero_shot', '--test-split=test[:20]')
  assert f'on {LABELS} test[:20]\n' in text


def evaluated(workdir, *arguments):
  """Returns what `evaluate` prints of a run."""
  console = Console(file=io.StringIO(), width=200)
  evaluate.main([f'--workdir={workdir}', *arguments], console)
  return console.file.getvalue()


def calls(monkeypatch, task, *names):
  """Returns how often methods are called: those that are jitted, compiled."""
  counts = collections.Counter()

  def counted(name, method):
    def call(*given):
      counts[name] += 1
      return method(*given)

    return call

  for name in names:
    monkeypatch.setattr(task, name, counted(name, getattr(task, name)))
  return counts


def test_towers_are_compiled_once_for_all_evaluations(monkeypatch):
  towers = calls(monkeypatch, Contrastive, 'encode_image', 'encode_text')
  run = run_lib.prepare(config(*EVALUATION[:3]))
  with jax.set_mesh(run.mesh):
    variables, made = run.init().evaluated, evaluators.make(run, print)
    for _ in range(2):
      figures = [evaluator(variables, iter) for evaluator in made]
  assert len(figures) == 2
  # Images come with captions, and with labels.
  assert towers == {'encode_image': 2, 'encode_text': 1}


@pytest.mark.parametrize('learned', [False, True])
def test_corruptions_are_scored_by_one_program(learned, monkeypatch):
  model = untrained(learned)
  method = 'predict' if learned else 'encode_image'
  called = calls(monkeypatch, type(model.task), method)
  texts = calls(monkeypatch, Contrastive, 'tokens')
  one = {'contrast': corruptions.CORRUPTIONS['contrast']}
  monkeypatch.setattr(corruptions, 'CORRUPTIONS', one)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (20, 16, 16, 3), np.uint8)
  source = array_sources.ArraySource(images, np.arange(20), IDS, 'test')
  scorer = scoring.Scorer(model.task, model.config, model.mesh, print)
  measure = classifying.measure(model, scorer, IDS, None)
  with jax.set_mesh(model.mesh):
    found = scorer.robustness(
      source, lambda worse, transform: measure(worse, transform=transform).top_1
    )
  assert len(found.accuracies['contrast']) == 5
  assert called == {method: 1}
  # The thousand names of the classes, 200 at a time.
  assert texts == ({} if learned else {'tokens': 5})


@pytest.mark.parametrize(
  'overrides, message',
  [
    (['checkpoint.best=retrieval/image_to_text_recall_5'], 'not measure'),
    (['eval.zero_shot.source=digits'], r'makes \(8, 8, 1\)'),
    (['eval.zero_shot.source=folder:nowhere'], 'nowhere'),
    ([*EVALUATION[:3], 'eval.zero_shot.prompts=cifar10'], 'for 10 classes'),
  ],
)
def test_what_cannot_be_evaluated_is_said_by_check(overrides, message):
  with pytest.raises(ConfigError, match=message):
    run_lib.prepare(config(*overrides), planned=True)


@pytest.mark.parametrize(
  'kind',
  [[], ['task.loss_function=sigmoid', 'model.initial_bias=-2.0']],
  ids=['softmax', 'sigmoid'],
)
def test_the_ring_is_the_plain_loss(kind, monkeypatch):
  found, called = [], []
  for name in ('ring_softmax_loss', 'ring_sigmoid_loss'):
    loss = getattr(contrastive_loss, name)

    def watched(*given, loss=loss):
      called.append(loss.__name__)
      return loss(*given)

    monkeypatch.setattr(contrastive_loss, name, watched)
  for ring in ('false', 'true'):
    run = run_lib.prepare(config(f'task.ring={ring}', *kind))
    with jax.set_mesh(run.mesh):
      batches = inputs.train_batches(run.config, run.inputs, run.mesh, 0, print)
      state, metrics = run.train_step(run.init(), next(batches))
      batches.close()
    found.append(jax.device_get((state.params, metrics)))
  (plain, metrics), (ring, of_ring) = found
  assert run.mesh.size == 8
  assert {*called} == {f'ring_{"sigmoid" if kind else "softmax"}_loss'}
  # The ring never has the similarities that these are of.
  assert 'positive' in metrics and 'positive' not in of_ring
  np.testing.assert_allclose(of_ring['loss'], metrics['loss'], atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6),
    ring,
    plain,
  )


def test_a_sigmoid_loss_starts_with_the_bias_of_its_batch():
  settings = config('task.loss_function=sigmoid', 'batch_size=32')
  run = run_lib.prepare(settings)
  assert run.init().params['logit_bias'] == pytest.approx(-np.log(31))
  # What is written is a number, which no other batch changes.
  assert run.config.model.initial_bias == pytest.approx(-np.log(31))
  run = run_lib.prepare(
    config('task.loss_function=sigmoid', 'model.initial_bias=-2.0')
  )
  assert run.init().params['logit_bias'] == -2
  assert 'logit_bias' not in run_lib.prepare(config()).state.params
  with pytest.raises(ConfigError, match='a batch of 1 has no pairs'):
    run_lib.prepare(
      config('task.loss_function=sigmoid', 'batch_size=1'), jax.devices()[:1]
    )


def planned(image, grid, **sections):
  """Returns a CLIP with an image tower, of data that is not here."""
  size = [8 * x for x in grid]
  split = dict(
    source='shards:nowhere',
    split='train',
    preprocess=f'resize(({size[0]}, {size[1]}))|value_range(-1, 1)',
  )
  expected = dict(train_examples=64, image_shape=(*size, 3))
  return config(
    model=CLIP['model'] | dict(image=image),
    data=dict(train=split, test=split, expected=expected),
    **sections,
  )


def started(settings):
  """Returns the parameters that a run starts with, and whence they are."""
  run = run_lib.prepare(settings, planned=True)
  with jax.set_mesh(run.mesh):
    state, origin = init_from.initial_state(run)
  return rules.by_path(jax.device_get(state.params)), origin


def test_the_image_tower_starts_from_a_vit():
  path = str(GOLDENS / 'vit_token.npz')
  tower = dict(
    name='vit', patch_size=8, width=48, depth=3, mlp_dim=96, num_heads=3,
    pooling='token',
  )  # fmt: skip
  init = dict(path=path, into='image')
  got, origin = started(planned(tower, (4, 4), init=init))
  given = rules.by_path(saved.read(pathlib.Path(path)).params)
  assert set(origin.left_out) == {
    f'image/{layer}/{name}'
    for layer in ('head', 'pre_logits')
    for name in ('kernel', 'bias')
  }
  assert {x for x in got if x.startswith('image/')} == {*origin.loaded}
  for path in origin.loaded:
    expected = given[path.removeprefix('image/')]
    np.testing.assert_array_equal(got[path], expected, path)


def test_what_a_released_clip_does_not_tell_is_told():
  path = GOLDENS / 'clip_vit_head64.npz'
  told = dict(activation='quick_gelu', image_heads=4)
  found = saved.read(path, told=told)
  tower = found.config.model.image.to_dict()
  assert (tower['num_heads'], tower['activation']) == (4, 'quick_gelu')
  init = dict(path=str(path), part='image', into='image')
  settings = planned(tower, (4, 4), init=init | told)
  got, _ = started(settings)
  for path, value in rules.by_path(found.params['image']).items():
    np.testing.assert_array_equal(got[f'image/{path}'], value, path)
  with pytest.raises(ConfigError, match='or config.init.activation'):
    started(planned(tower, (4, 4), init=init))


def test_a_run_needs_not_be_told(tmp_path):
  with pytest.raises(ConfigError, match='text_heads .* knows its own'):
    saved.read(tmp_path, told={'text_heads': 2})


IDS = tuple(f'n{number:08}' for number in range(1000))


@pytest.mark.parametrize('learned', [False, True])
def test_variants_of_imagenet_are_chosen_from_their_classes(
  learned, tmp_path, monkeypatch
):
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.arange(1000))[:200]
  images = rng.integers(0, 256, (200, 16, 16, 3), np.uint8)
  source = array_sources.ArraySource(images, labels, IDS, 'test')
  monkeypatch.setattr(records, 'open_source', lambda *unused: source)
  model = untrained(learned)
  texts = [f'{number % 7} {number}' for number in range(1000)]
  prompts = tmp_path / 'prompts.json'
  prompts.write_text(json.dumps({'names': texts, 'templates': ['{}']}))
  scorer = scoring.Scorer(model.task, model.config, model.mesh, print)
  with jax.set_mesh(model.mesh):
    found = classifying.variants(model, scorer, ['imagenet_a'], str(prompts))
    if learned:
      scores = jax.jit(model.task.predict)(model.variables, images / 127.5 - 1)
    else:
      score = matching.Matcher(model).scorer(texts)
      scores = jax.jit(score)(model.variables, images / 127.5 - 1)
  among = np.sort(labels)
  best = np.asarray(scores)[:, among].argsort(axis=1)[:, ::-1]
  right = among[best] == labels[:, None]
  result = found['imagenet_a']
  assert (result.examples, result.classes) == (200, 200)
  assert result.top_5 == pytest.approx(right[:, :5].any(1).mean(), abs=0.006)
  assert result.top_1 == pytest.approx(right[:, 0].mean(), abs=0.006)
  monkeypatch.setattr(source, 'labels', labels[:100])
  with pytest.raises(ConfigError, match='100 classes, but 200'):
    classifying.variants(model, scorer, ['imagenet_a'], str(prompts))


def test_a_model_of_grey_images_is_shown_coloured_ones():
  matcher = matching.Matcher(untrained(False, channels=1))
  rng = np.random.default_rng(0)
  coloured = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
  grey = np.rint(coloured @ [[0.299], [0.587], [0.114]]).astype(np.uint8)
  scores = matcher.score(coloured, ['1 2', '3'])
  np.testing.assert_allclose(
    scores, matcher.score(grey, ['1 2', '3']), atol=0.01
  )
  assert np.ptp(scores) > 0.05
  with pytest.raises(ValueError, match='Resize it'):
    matcher.score(coloured[:, :8], ['1 2'])


def untrained(learned, channels=3):
  """Returns a CLIP, or a classifier of ImageNet, that nobody has trained."""
  size = 'eval.batch_size=200'
  settings = config('model.text.vocabulary_size=514', size)
  if learned:
    tower = CLIP['model']['image']
    task = dict(name='classification')
    settings = config(size, task=task, model=tower)
  words = tokenizer.Tokenizer((), 16)
  known = build.Known(IDS if learned else (), (16, 16, channels), words)
  task = build.make_task(settings, known)
  mesh = mesh_lib.make(settings.mesh, jax.devices()[:1])
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: x + rng.normal(0, 0.2, x.shape).astype(x.dtype),
    jax.jit(task.init)(jax.random.key(0)),
  )
  return trained.Trained(settings, task, mesh, variables, 0, learned)
