"""A run that is killed, stopped or damaged goes on as if nothing happened."""

import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from vit_jax.config import ConfigError
from vit_jax.training import checkpoint, loop, metrics, rules
from vit_jax.training import run as run_lib
from vit_jax.training import state as state_lib
from vit_jax.training import step as step_lib

QUIET = Console(quiet=True)


def train(config, workdir, devices=1):
  run = run_lib.prepare(config, jax.devices()[:devices])
  loop.train(run, pathlib.Path(workdir), QUIET)


def final(workdir):
  """Returns everything of the last checkpoint, and the losses of each step."""
  with checkpoint.Checkpoints(pathlib.Path(workdir) / 'checkpoints') as saved:
    tree, _, step = saved.load()
  rows = metrics.read(workdir)
  losses = {r['step']: r['train/loss'] for r in rows if 'train/loss' in r}
  return rules.by_path(tree), losses, step


def assert_same(workdir, reference):
  state, losses, step = final(workdir)
  expected, expected_losses, expected_step = reference
  assert step == expected_step
  assert losses == expected_losses  # To the last bit.
  assert sorted(state) == sorted(expected)
  for path, value in expected.items():
    np.testing.assert_array_equal(state[path], value, err_msg=path)


@pytest.fixture(scope='module')
def undisturbed(tiny, tmp_path_factory):
  """The run that all others are compared with."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  train(tiny(), workdir)
  return final(workdir)


def start(config, workdir, moment):
  """Starts a run in a process of its own."""
  path = workdir.parent / f'{workdir.name}.json'
  path.write_text(json.dumps(config.to_dict()))
  script = pathlib.Path(__file__).with_name('killed.py')
  return subprocess.Popen(
    [sys.executable, str(script), str(workdir), moment, str(path)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )


MOMENTS = ['after:2', 'after:6', 'saving:4', 'saving:8', 'saving:8:0.02']


@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_and_resumed_is_as_if_undisturbed(
  tiny, undisturbed, tmp_path, moment
):
  workdir = tmp_path / 'run'
  process = start(tiny(), workdir, moment)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == -signal.SIGKILL, errors
  with checkpoint.Checkpoints(workdir / 'checkpoints') as saved:
    assert saved.latest() in (None, 4, 8)
  train(tiny(), workdir)
  assert_same(workdir, undisturbed)


def test_sigterm_saves_at_once_and_the_run_goes_on(tiny, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  # So long that it cannot finish by itself.
  config = tiny('total=100000steps', 'checkpoint.every=100000steps')
  process = start(config, workdir, 'never')
  while len(metrics.read(workdir)) < 5:
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.1)
  asked = time.monotonic()
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=120)
  assert time.monotonic() - asked < 30
  assert 'Preempted' in errors
  _, losses, step = final(workdir)
  assert step >= 5
  assert max(losses) == step


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
  tiny, undisturbed, tmp_path, caplog
):
  workdir = tmp_path / 'run'
  train(tiny(), workdir)
  files = [
    path
    for path in (workdir / 'checkpoints' / '12').rglob('*')
    if path.is_file()
  ]
  largest = max(files, key=lambda path: path.stat().st_size)
  damaged = bytearray(largest.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  largest.write_bytes(damaged)
  train(tiny(), workdir)
  assert 'step 12' in caplog.text
  assert_same(workdir, undisturbed)


def test_resumes_on_fewer_devices(tiny, tmp_path):
  def config(total, **mesh):
    return tiny(
      f'total={total}steps',
      'schedule.name=constant',
      'mesh.fsdp_minimum_mib=0',
      *(f'mesh.{axis}={size}' for axis, size in mesh.items()),
    )

  alone, moved = tmp_path / 'alone', tmp_path / 'moved'
  train(config(12), alone)
  train(config(4, fsdp=4, tensor=2), moved, devices=8)
  train(config(8, fsdp=2, tensor=2), moved, devices=4)
  train(config(12), moved)
  state, losses, _ = final(moved)
  expected, expected_losses, _ = final(alone)
  np.testing.assert_allclose(
    list(losses.values()), list(expected_losses.values()), rtol=1e-4
  )
  for path, value in expected.items():
    if path.startswith('params'):
      np.testing.assert_allclose(state[path], value, atol=2e-3, err_msg=path)


@pytest.mark.parametrize('rate', ['1e20', '1e30'])
def test_what_is_not_finite_stops_the_run_and_is_never_saved(
  tiny, tmp_path, rate
):
  # With 1e20 gradients and parameters overflow before the loss does.
  config = tiny(
    f'optimizer.learning_rate={rate}', 'optimizer.name=sgd',
    'schedule.name=constant', 'schedule.warmup=8steps',
    'checkpoint.every=1steps',
  )  # fmt: skip
  with pytest.raises(loop.TrainingError) as error:
    train(config, tmp_path)
  text = str(error.value)
  step = int(re.search(r'At step (\d+) ', text)[1])
  assert 'learning rate that is too high' in text
  assert 'optimizer.clip_norm' in text
  assert f'--config.init={tmp_path}' in text
  # What is kept is finite, and the newest that can be.
  state, _, kept = final(tmp_path)
  assert f'step {kept} is intact' in text
  assert kept == step - 1
  assert all(np.isfinite(value).all() for value in state.values())


def test_parameters_that_are_not_finite_are_not_saved(
  tiny, tmp_path, monkeypatch
):
  create = state_lib.create

  def poisoned(variables, *args):
    # Neither loss nor gradient norm shows it.
    state = create(variables, *args)
    average = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    return state.replace(average=average)

  monkeypatch.setattr(state_lib, 'create', poisoned)
  monkeypatch.setattr(
    step_lib, '_moved_average', lambda average, *unused: average
  )
  with pytest.raises(loop.TrainingError, match='a parameter or moment'):
    train(tiny('checkpoint.every=1steps', 'eval.every=12steps'), tmp_path)
  assert not checkpoint.Checkpoints(tmp_path / 'checkpoints').steps()


def test_every_step_has_a_key_of_its_own():
  data = jax.random.key_data(state_lib.random_key(0))
  other = jax.random.key_data(state_lib.random_key(1))
  keys = [
    state_lib.step_key(seed, step) for seed in (data, other) for step in (0, 1)
  ]
  assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4


def test_starts_from_the_parameters_of_another_run(tiny, tmp_path):
  train(tiny('total=4steps', 'optimizer.average=0.5'), tmp_path / 'old')
  train(
    tiny(
      'total=4steps',
      'optimizer.learning_rate=1e-30',
      f'init={tmp_path / "old"}',
      "init.fresh=('head/.*',)",
    ),
    tmp_path / 'new',
  )
  old, new = (final(tmp_path / name)[0] for name in ('old', 'new'))
  for path, value in new.items():
    if path.startswith('params/'):
      # What was evaluated: the average.
      before = old[path.replace('params/', 'average/')]
      same = np.array_equal(value, before)
      assert same == (not path.startswith('params/head/')), path


def test_a_run_to_start_from_that_is_none(tiny, tmp_path):
  with pytest.raises(ConfigError, match='config.init: There is no run'):
    train(tiny(f'init={tmp_path / "nothing"}'), tmp_path / 'new')


def test_a_workdir_belongs_to_one_configuration(tiny, tmp_path):
  (tmp_path / 'config.json').write_text('{"torn')  # By an earlier kill.
  train(tiny('total=2steps', 'schedule.warmup=0steps'), tmp_path)
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(ConfigError, match='batch_size: was 32, is 64'):
    train(
      tiny('batch_size=64', 'total=2steps', 'schedule.warmup=0steps'), tmp_path
    )
  assert (tmp_path / 'config.json').read_text() == before


def test_an_evaluation_that_was_cut_off_is_made_up(tiny, tmp_path):
  config = tiny('total=8steps', 'eval.every=4steps')
  train(config, tmp_path)
  path = tmp_path / 'metrics.jsonl'
  before = path.read_text().splitlines()
  shutil.rmtree(tmp_path / 'checkpoints' / '8')
  cut = [row for row in before if 'test/' not in row]
  path.write_text('\n'.join(cut) + '\n')
  train(config, tmp_path)

  def tests():
    rows = metrics.read(tmp_path)
    return {r['step']: r['test/loss'] for r in rows if 'test/loss' in r}

  after = tests()
  path.write_text('\n'.join(before) + '\n')
  assert after == tests() and list(after) == [4, 8]


def test_leaves_what_every_run_leaves(tiny, tmp_path):
  console = Console(record=True, width=80, file=io.StringIO())
  run = run_lib.prepare(tiny(), jax.devices()[:1])
  loop.train(run, tmp_path, console)
  text = console.export_text()
  assert 'img/s' in text and 'ETA' in text and 'wait' in text
  assert max(map(len, text.splitlines())) <= 80
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {
    'config.json', 'metrics.jsonl', 'tensorboard', 'checkpoints', 'report',
    '.lock',
  }  # fmt: skip
  plots = {path.stem for path in (tmp_path / 'report').iterdir()}
  assert plots == {
    'loss', 'accuracy', 'learning_rate', 'speed', 'mistakes', 'confusion',
  }  # fmt: skip
  rows = metrics.read(tmp_path)
  assert [row['step'] for row in rows if 'train/loss' in row] == [*range(1, 13)]
  tests = [row for row in rows if 'test/accuracy' in row]
  assert [row['step'] for row in tests] == [6, 12]
  assert all(row['test/examples'] == 360 for row in tests)
  again = Console(record=True, width=80, file=io.StringIO())
  loop.train(run, tmp_path, again)
  assert 'This run is finished: 12 steps' in again.export_text()
  shutil.rmtree(tmp_path)
