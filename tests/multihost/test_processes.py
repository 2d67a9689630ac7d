"""Several processes train as one does, and stop, die and go on together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from vit_jax import command_line
from vit_jax.config import ConfigError
from vit_jax.training import processes
from vit_jax.training import workdir as workdir_lib
from vit_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 4
SMALL = (
  'model.width=32', 'model.depth=1', 'batch_size=64', 'total=30steps',
  'eval.every=15steps', 'checkpoint.every=10steps', 'log_every=1steps',
  'optimizer.learning_rate=0.01', 'mesh.fsdp=2', 'mesh.fsdp_minimum_mib=0',
)  # fmt: skip


def start(workdir, count, *overrides):
  """Starts a run in `count` processes, with DEVICES devices in all."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  started = []
  for index in range(count):
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(DEVICES // count),
      'XLA_FLAGS': '',
    }
    if count > 1:
      environment |= {
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_PROCESS_COUNT': str(count),
        'JAX_PROCESS_ID': str(index),
      }
    command = [sys.executable, '-m', 'vit_jax.train', f'--workdir={workdir}']
    command += ['--config=configs/digits.py']
    command += [f'--config.{override}' for override in (*SMALL, *overrides)]
    log = (workdir.parent / f'{workdir.name}.{index}.log').open('a')
    started.append(
      subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log,
                       stderr=subprocess.STDOUT)
    )  # fmt: skip
  return started


def codes(started, seconds=300):
  """Returns the exit codes; none may take longer."""
  end = time.monotonic() + seconds
  try:
    return [each.wait(max(1, end - time.monotonic())) for each in started]
  finally:
    for each in started:
      each.kill()


def rows(workdir, name='train/loss'):
  """Returns the values of a metric by step."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  found = [json.loads(line) for line in lines if line.endswith('}')]
  return {row['step']: row[name] for row in found if name in row}


def wait_for(workdir, steps, seconds=200):
  """Returns when a run has logged so many steps."""
  end = time.monotonic() + seconds
  while len(rows(workdir)) < steps:
    assert time.monotonic() < end, 'the run does not get going'
    time.sleep(0.05)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The workdir of a run in one process, never disturbed."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  assert codes(start(workdir, 1)) == [0]
  return workdir


def check_same(workdir, alone):
  """Compares runs in which sums were taken in another order."""
  for name in ('train/loss', 'train/gradient_norm', 'test/loss'):
    expected, got = rows(alone, name), rows(workdir, name)
    assert expected.keys() == got.keys() and len(expected) >= 2
    for step, value in expected.items():
      assert abs(value - got[step]) < 2e-5, (name, step)
  assert rows(workdir, 'test/examples') == rows(alone, 'test/examples')
  expected, got = (
    Checkpoints(folder / 'checkpoints').load(('params',))[0]['params']
    for folder in (alone, workdir)
  )
  for path in (('head', 'kernel'), ('encoder', 'norm', 'scale')):
    a, b = expected, got
    for key in path:
      a, b = a[key], b[key]
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_two_processes_stop_together_and_one_goes_on(alone, tmp_path):
  workdir = tmp_path / 'run'
  pair = start(workdir, 2)
  wait_for(workdir, 3)
  pair[1].send_signal(signal.SIGTERM)  # To one only.
  assert codes(pair) == [command_line.PREEMPTED] * 2
  (stopped,) = set(Checkpoints(workdir / 'checkpoints').steps()) - {10, 20}
  assert stopped < 30 and max(rows(workdir)) == stopped
  assert codes(start(workdir, 1)) == [0]
  check_same(workdir, alone)
  # The first process alone prints, and draws.
  log = (tmp_path / 'run.1.log').read_text()
  assert 'img/s' not in log and (workdir / 'report' / 'loss.png').exists()


@pytest.mark.slow
def test_four_processes_train_as_one_does(alone, tmp_path):
  workdir = tmp_path / 'run'
  assert codes(start(workdir, 4)) == [0] * 4
  check_same(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_ends_the_others(alone, tmp_path, victim):
  workdir = tmp_path / 'run'
  pair = start(workdir, 2)
  wait_for(workdir, 12)
  pair[victim].kill()
  other = codes(pair, seconds=90)[1 - victim]
  # A supervisor starts it again: the code is none of those that end a run.
  assert other not in (
    command_line.DONE, command_line.REFUSED, command_line.STOPPED,
    command_line.INTERRUPTED,
  )  # fmt: skip
  assert codes(start(workdir, 2)) == [0, 0]
  check_same(workdir, alone)


@pytest.mark.slow
def test_an_error_of_one_process_keeps_its_code(tmp_path):
  run = tmp_path / 'run'
  with workdir_lib.only_run_in(run):
    pair = start(run, 2)
    # Without waiting for the other, which waits for it.
    assert codes(pair, seconds=120)[0] == command_line.REFUSED


def test_half_a_description_of_processes_is_refused(monkeypatch):
  monkeypatch.setenv('JAX_PROCESS_COUNT', '2')
  with pytest.raises(ConfigError, match='JAX_PROCESS_ID=None.*Give all three'):
    processes.start()
