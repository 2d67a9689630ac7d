"""Learning without labels, and from a teacher, from start to use."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import evaluate, few_shot
from vit_jax.config import ConfigError
from vit_jax.tasks import byol as byol_lib
from vit_jax.training import (
  checkpoint,
  frozen,
  init_from,
  loop,
  metrics,
  rules,
  saved,
  schema,
  trained,
)
from vit_jax.training import run as run_lib

SHORT = (
  'total=2steps', 'schedule.warmup=1steps', 'eval.every=100%',
  'checkpoint.every=100%', 'model.depth=1',
  'data.test.split=test[:64]',
)  # fmt: skip
BYOL = (
  'task.name=byol', 'task.hidden=24', 'task.projection=12',
  'task.target_decay=0.9',
)  # fmt: skip
# Images of three channels, from digits and from drawn shapes.
COLOURED = tuple(
  f'data.{name}.preprocess=resize(8)|to_rgb|value_range(-1, 1)'
  for name in ('train', 'test')
)
SHAPES = ('data.train.source=shapes:pixels=16', 'data.train.split=train')


def prepare(config):
  return run_lib.prepare(config, jax.devices()[:1])


def train(run, workdir):
  console = Console(file=io.StringIO(), width=80)
  loop.train(run, workdir, console)
  return console.file.getvalue()


def everything(workdir):
  """Returns all arrays of the last checkpoint by path, and its step."""
  with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
    tree, _, step = checkpoints.load()
  return rules.by_path(tree), step


def last(workdir):
  """Returns the last value of each figure."""
  return {k: x for row in metrics.read(workdir) for k, x in row.items()}


@pytest.fixture(scope='module')
def byol(tiny, tmp_path_factory):
  """A run, the folder it was made in, and what it said."""
  workdir = tmp_path_factory.mktemp('byol')
  run = prepare(tiny(*SHORT, *BYOL, 'total=6steps'))
  return run, workdir, train(run, workdir)


@pytest.fixture(scope='module')
def masked_patches(tiny, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('masked_patches')
  run = prepare(tiny(*SHORT, 'task.name=masked_patches'))
  return run, workdir, train(run, workdir)


@pytest.fixture(scope='module')
def teacher(tiny, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('teacher')
  train(prepare(tiny(*SHORT, *COLOURED)), workdir)
  return workdir


def stopped_after(steps):
  """Returns what a run asks after each step: whether it was asked to stop."""

  @contextlib.contextmanager
  def requests():
    answers = iter([False] * (steps - 1))
    yield lambda: next(answers, True)

  return requests


def test_byol_goes_on_as_if_it_had_not_been_stopped(
  byol, tmp_path, monkeypatch
):
  run, undisturbed, _ = byol
  with monkeypatch.context() as stopping, pytest.raises(loop.Preempted):
    stopping.setattr(loop, 'stop_requests', stopped_after(3))
    train(run, tmp_path)
  half, step = everything(tmp_path)
  assert step == 3
  assert 'Going on from step 3' in train(run, tmp_path)
  (found, step), (expected, end) = map(everything, (tmp_path, undisturbed))
  assert step == end == 6 and sorted(found) == sorted(expected)
  for path, value in expected.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)
  losses = [
    [row['train/loss'] for row in metrics.read(folder) if 'train/loss' in row]
    for folder in (tmp_path, undisturbed)
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 6
  # The target has followed, and is not what it follows.
  kernel = 'params/task/projector/output/kernel'
  target = f'others/target/{kernel}'
  assert not np.array_equal(found[target], half[target])
  assert not np.array_equal(found[target], found[kernel])


def test_byol_watches_for_a_collapse(byol, tmp_path, monkeypatch):
  run, workdir, said = byol
  assert (workdir / 'report' / 'feature_variance.png').exists()
  assert 'test/feature_variance' in last(workdir) and 'collapsed' not in said
  monkeypatch.setattr(byol_lib, '_COLLAPSED', 2.0)
  text = train(run, tmp_path)
  assert text.count('collapsed') == 1
  assert re.search('step 1  collapsed: feature_variance is near 0', text)


def test_masked_patches_leaves_a_sheet_of_them(masked_patches):
  _, workdir, _ = masked_patches
  assert (workdir / 'report' / 'masked_patches.png').exists()
  found = last(workdir)
  # Of 512 colours.
  assert 0 < found['train/loss'] < np.log(512) and 'test/accuracy' in found


@pytest.mark.parametrize('name', ['byol', 'classification'])
def test_the_resnet_of_clip_learns_by_itself(name, tiny):
  sides = [x.replace('(8)', '(32)') for x in COLOURED]
  sections = tiny(*SHORT, *sides).to_dict()
  sections['model'] = dict(
    name='modified_resnet', stages=(1, 1, 1, 1), width=4, num_heads=2
  )
  sections['task'] = {'name': name}
  run = prepare(config_lib.resolve(sections, (), schema.SCHEMA))
  stats = rules.by_path(run.state.others['batch_stats'])
  assert 'stem/norm_1/mean' in stats
  assert ('head' in run.state.params) == (name != 'byol')


@pytest.mark.parametrize('name', ['byol', 'masked_patches'])
def test_what_was_learned_starts_a_classifier(name, tiny, request):
  _, workdir, _ = request.getfixturevalue(name)
  run = prepare(tiny(*SHORT, f'init={workdir}'))
  with jax.set_mesh(run.mesh):
    state, origin = init_from.initial_state(run)
  assert set(origin.fresh) == {'head/kernel', 'head/bias'}
  assert origin.left_out
  assert all(path.startswith('task/') for path in origin.left_out)
  before = rules.by_path(saved.read(workdir).params)
  after = rules.by_path(state.params)
  assert set(origin.loaded) == after.keys() - origin.fresh.keys()
  for path in origin.loaded:
    np.testing.assert_array_equal(after[path], before[path], err_msg=path)


@pytest.mark.parametrize('name', ['byol', 'masked_patches'])
def test_what_was_learned_is_measured(name, request, capsys):
  _, workdir, _ = request.getfixturevalue(name)
  given = [f'--workdir={workdir}', '--json', '--train-split=train[:200]']
  given.append('--test-split=test[:100]')
  console = Console(file=io.StringIO())
  few_shot.main([*given, '--shots=5', '--seeds=2'], console)
  (row,) = json.loads(capsys.readouterr().out)['trained']
  assert min(row['accuracies']) > 0.2  # Chance is 0.1.
  evaluate.main([*given, '--tasks=linear_probe'], console)
  found = json.loads(capsys.readouterr().out)
  assert found['linear_probe/accuracy'] > 0.2


def test_a_noisy_student_learns_from_any_images(tiny, teacher, tmp_path):
  shutil.copytree(teacher, tmp_path / 'teacher')
  run = prepare(
    tiny(
      *SHORT, *COLOURED, *SHAPES, 'task.name=distillation',
      f'task.teacher_path={tmp_path / "teacher"}', 'task.teacher_sees=view',
      'data.train.preprocess=resize(8)|flip_lr|value_range(-1, 1)',
      'data.train.second_view=resize(8)|value_range(-1, 1)',
    )
  )  # fmt: skip
  assert set(run.batch) == {'image', 'view'}
  assert run.task.class_names == tuple('0123456789')
  student = tmp_path / 'student'
  train(run, student)
  found = last(student)
  assert 'train/agreement' in found and 'train/accuracy' not in found
  assert 0 <= found['test/accuracy'] <= 1
  # The teacher has stayed as it was, and is not needed any more.
  taught = rules.by_path(saved.read(teacher).params)
  shutil.rmtree(tmp_path / 'teacher')
  model = trained.load(student)
  kept = rules.by_path(jax.device_get(model.variables['frozen']['params']))
  assert sorted(kept) == sorted(taught)
  for path, value in taught.items():
    np.testing.assert_array_equal(kept[path], value, err_msg=path)
  chances = model.task.predict(model.variables, np.zeros((2, 8, 8, 3)))
  np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-5)


def test_labels_are_read_where_they_count(tiny, teacher):
  given = (*SHORT, 'task.name=distillation', f'task.teacher_path={teacher}')
  other = 'data.train.source=field:shape_1:shapes:pixels=16'
  images = (*COLOURED, other, 'data.train.split=test')
  assert set(prepare(tiny(*given, *images)).batch) == {'image'}
  labels = 'task.true_labels=0.5'
  with pytest.raises(ConfigError, match='10 .0, 1.* training has 4 .circle'):
    prepare(tiny(*given, *images, labels))
  assert set(prepare(tiny(*given, *COLOURED, labels)).batch) == {
    'image', 'label'
  }  # fmt: skip


def test_a_teacher_of_classes_in_another_order_is_refused(tiny, teacher):
  given = (*SHORT, *COLOURED, 'task.name=distillation')
  names = "data.classes=('0','2','1','3','4','5','6','7','8','9')"
  config = tiny(*given, f'task.teacher_path={teacher}', names)
  with pytest.raises(ConfigError, match="class 1 of .* is '1', .*data '2'"):
    prepare(config)
  # Of a file that has none, no names are compared; numbers are the task's.
  unnamed = dataclasses.replace(frozen.load(config), names_known=False)
  frozen.check_classes(config, unnamed, ('a',) * 10)
  frozen.check_classes(config, frozen.load(config), ('a',) * 9)
