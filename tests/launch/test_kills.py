"""A run that is killed ten times, in every way, through the real launch path.

Only Google Cloud and the installation of packages are played.
"""

import importlib.util
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from vit_jax.training import metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 300

CONFIG = [
  f'--config={ROOT}/configs/digits.py',
  f'--config.total={STEPS}steps',
  '--config.model.depth=2',
  '--config.batch_size=32',
  '--config.checkpoint.every=20steps',
  '--config.eval.every=100steps',
  # A stop writes a row of the steps since the last one.
  '--config.log_every=1steps',
]
# Cloud Storage is a folder that outlives the slices.
PROGRAM = f"""
exec {sys.executable} "${{@//gs:\\/\\/bucket/$FAKE_CLOUD/bucket}}"
"""
KINDS = ['program killed'] * 3 + ['asked to stop'] * 3
KINDS += ['worker killed'] * 2 + ['slice preempted'] * 2


def load_cloud():
  """Returns the class Cloud of the file beside this one."""
  path = pathlib.Path(__file__).with_name('test_tpu_vm.py')
  spec = importlib.util.spec_from_file_location('launch_cloud', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.Cloud


def children(pid):
  """Returns the processes that a process has started."""
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in path.read_text().split()]


class Slice:
  """What is to be killed: the one worker of the slice that there is."""

  def __init__(self, cloud):
    self.cloud = cloud

  @property
  def run(self):
    return self.cloud.folder / 'vit-w-0' / 'vit_jax_launch' / 'run'

  def program(self):
    """The process that trains, None if there is none."""
    try:
      found = children(int((self.run / 'pid').read_text()))
      command = pathlib.Path(f'/proc/{found[0]}/cmdline').read_bytes()
    except (OSError, ValueError, IndexError):
      return None
    return found[0] if b'vit_jax.train' in command else None

  def step(self):
    """The newest step that its log tells of."""
    text = (self.run / 'log').read_text() if self.run.exists() else ''
    return int((re.findall(rf'^(\d+)/{STEPS} ', text, re.M) or [0])[-1])

  def kill(self, kind, program):
    if kind == 'slice preempted':
      self.cloud.preempt()
    elif kind == 'worker killed':
      session = (self.run / 'pid').read_text().strip()
      subprocess.run(['pkill', '-KILL', '--session', session], check=True)
    else:
      numbers = {'program killed': signal.SIGKILL}
      os.kill(program, numbers.get(kind, signal.SIGTERM))


def kill_ten_times(there, process, chance):
  """Kills at random moments; returns what was hit, and at which steps."""
  hit, last = [], None
  for number, kind in enumerate(chance.sample(KINDS, len(KINDS))):
    # Evenly over the run; every third as it starts, before it gets any further.
    starting = number % 3 == 2
    aim = 0 if starting else STEPS * (number + chance.random()) / len(KINDS)
    while True:
      assert process.poll() is None, f'ended after {hit}'
      program = there.program()
      if program not in (None, last) and there.step() >= 0.9 * aim:
        break
      time.sleep(0.02)
    time.sleep(chance.uniform(0, 2 if starting else 0.2))
    hit.append((kind, there.step()))
    there.kill(kind, program)
    last = program
  return hit


def figures(workdir, group):
  """Returns the figures of a group by step, in the order of the rows."""
  return {
    row['step']: {key: row[key] for key in row if key.startswith(group)}
    for row in metrics.read(workdir)
    if any(key.startswith(group) for key in row)
  }


def checksums(workdir):
  """Returns the checksums of all arrays of the last checkpoint."""
  path = workdir / 'checkpoints' / str(STEPS) / 'meta' / 'data.json'
  return json.loads(path.read_text())['arrays']


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path):
  environment = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': os.environ['JAX_COMPILATION_CACHE_DIR'],
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': '',
    'RESTART_LIMIT': '99',
  }
  undisturbed = tmp_path / 'undisturbed'
  command = [sys.executable, '-m', 'vit_jax.train', f'--workdir={undisturbed}']
  subprocess.run(
    [*command, *CONFIG], env={**os.environ, **environment}, check=True
  )
  cloud = load_cloud()(tmp_path / 'launched', environment)
  cloud.train_as(PROGRAM)
  where = ['--name=vit', '--zone=z', '--type=v3-8', '--spot']
  process = cloud.start(
    'train', *where, '--workdir=gs://bucket/run', '--', *CONFIG
  )
  try:
    hit = kill_ten_times(Slice(cloud), process, random.Random(0))
    print(*hit, sep='\n')
    output, errors = process.communicate(timeout=300)
  finally:
    cloud.close()
  assert process.returncode == 0, output + errors
  disturbed = cloud.folder / 'bucket' / 'run'
  assert checksums(disturbed) == checksums(undisturbed)
  for group in ('train/', 'test/'):
    assert figures(disturbed, group) == figures(undisturbed, group)
