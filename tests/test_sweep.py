"""One run for each point of a grid, whatever happens to the others."""

import csv
import io
import json
import os
import pathlib
import shlex
import signal
import sys
import threading
import time

import pytest
from rich.console import Console

from vit_jax import command_line, config, sweep, train

DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
RATE, DECAY = 'optimizer.learning_rate', 'optimizer.weight_decay'

# Stands for a run: leaves what one leaves, and fails at a rate of 1.
STANDS_FOR_TRAINING = """#!{python}
import json, pathlib, signal, sys, time
options = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[3:])
rate = float(options['config.optimizer.learning_rate'])
workdir = pathlib.Path(options['workdir'])
workdir.mkdir(parents=True)
(workdir / 'config.json').write_text(json.dumps(dict(batch_size=32)))
if rate == 1:
  sys.exit(3)
if rate == 2:
  def save(*unused):
    (workdir / 'saved').touch()
    sys.exit(75)
  signal.signal(signal.SIGTERM, save)
  (workdir / 'ready').touch()
  time.sleep(60)
with (workdir / 'metrics.jsonl').open('w') as file:
  for step, score in (10, 0.7 + rate), (20, 0.75 - rate):
    row = {{'step': step, 'test/accuracy': score, 'test/loss': 1 - score}}
    print(json.dumps({{**row, 'speed/images_per_sec': 64}}), file=file)
(workdir / 'report').mkdir()
(workdir / 'report' / 'loss.png').touch()
"""


def call(*arguments):
  """Returns what a command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  sweep.main([str(argument) for argument in arguments], console)
  return console.file.getvalue()


@pytest.fixture
def grid(tmp_path):
  """Returns a function from values of the learning rate to a command."""

  def make(rates):
    arguments = f'--config={DIGITS}', f'--workdir={tmp_path / "sweep"}'
    return *arguments, '--set', f'config.{RATE}={rates}'

  return make


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  path = tmp_path / 'python'
  path.write_text(STANDS_FOR_TRAINING.format(python=sys.executable))
  path.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(path))


def table(workdir):
  with (workdir / 'sweep.csv').open() as file:
    return list(csv.DictReader(file))


def test_prints_commands_that_work(grid):
  text = call(
    *grid('0.001,0.01'), '--config.total=20steps',
    '--set', 'config.data.train.preprocess='
    'value_range(-1, 1),random_crop(8, padding=1)|value_range(-1, 1)',
  )  # fmt: skip
  commands = [shlex.split(line) for line in text.splitlines()]
  assert len({command[-1] for command in commands}) == 4
  for command, rate in zip(commands, (0.001, 0.001, 0.01, 0.01)):
    assert command[:3] == ['python', '-m', 'vit_jax.train']
    assert f'/learning_rate={rate},preprocess=' in command[-1]
  console = Console(file=io.StringIO(), width=80)
  train.main([*commands[-1][3:], '--check'], console)
  assert 'learning rate 0.01' in console.file.getvalue()


def test_a_run_that_fails_does_not_stop_the_others(grid, stand_in, tmp_path):
  with pytest.raises(command_line.TrainingError, match='1 of 3 .*rate=1$'):
    call(*grid('0.1,1,0.2'), '--run')
  workdir = tmp_path / 'sweep'
  rows = table(workdir)
  assert [row['learning_rate'] for row in rows] == ['0.1', '1', '0.2']
  assert [row['status'] for row in rows] == [
    'finished', 'failed (3)', 'finished',
  ]  # fmt: skip
  first = rows[0]
  assert (first['metric'], first['step']) == ('test/accuracy', '20')
  assert float(first['best']) == pytest.approx(0.8) and first['at'] == '10'
  assert float(first['last']) == pytest.approx(0.65)
  assert float(first['seconds']) == 20 * 32 / 64
  # Without a configuration, from what is there.
  text = call('--table', f'--workdir={workdir}', '--metric=test/loss')
  rows = {row['learning_rate']: row for row in table(workdir)}
  assert rows['1']['status'] == 'not finished'
  assert float(rows['0.1']['best']) == pytest.approx(0.2)
  assert 'test/loss' in text and '0.3500' in text and '10s' in text
  assert max(map(len, text.splitlines()[:-1])) <= 80


def test_table_of_runs_that_are_not_there_yet(grid, tmp_path):
  text = call(*grid('0.1,0.2'), '--table')
  assert text.count('not started') == 2
  # What looks like markup is shown as it is.
  workdir = tmp_path / '[' / 'bold]'
  for name in ('learning_rate=0.1', 'other[a]'):
    other = workdir / name
    other.mkdir(parents=True)
    (other / 'config.json').write_text(json.dumps(dict(batch_size=32)))
  text = call('--table', f'--workdir={workdir}')
  assert 'other[a]' in text and '0.1' in text and 'not finished' in text
  assert f'Written to {workdir}/sweep.csv.' in text


def test_asked_to_stop_it_lets_the_run_save_and_starts_no_other(
  grid, stand_in, tmp_path
):
  workdir = tmp_path / 'sweep' / 'learning_rate=2'

  def stop():
    while not (workdir / 'ready').exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop, daemon=True).start()
  with pytest.raises(SystemExit) as ended:
    call(*grid('2,0.1'), '--run')
  assert ended.value.code == command_line.PREEMPTED
  assert (workdir / 'saved').exists()
  assert not (workdir.parent / 'learning_rate=0.1').exists()


REFUSED = [
  (('--set', 'config.optimizer.learning_rat=1'), "Did you mean 'learning_rat"),
  (('--set', f'config.{DECAY}=0.1,-1'), 'weight_decay is -1'),
  (('--set', f'config.{DECAY}=0.1,x'), 'expected float'),
  (('--set', f'config.{RATE}=1'), 'is set twice'),
  (('--set', f'config.{DECAY}=0.1,0.1'), 'Two points'),
  (('--set', 'weight_decay'), 'is not understood'),
  (('--tabel',), "Did you mean '--table'"),
]


@pytest.mark.parametrize('arguments,message', REFUSED)
def test_requests_that_cannot_work(grid, arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    call(*grid('0.1'), *arguments)


@pytest.mark.parametrize(
  'arguments,message',
  [
    ((), '--workdir is missing'),
    (('--workdir=none', '--run'), '--config is missing'),
    (('--workdir=none', '--table'), 'no run in the folders of none'),
    (('--workdir=none', f'--config={DIGITS}'), '--set is missing'),
  ],
)
def test_what_is_missing_is_named(arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    call(*arguments)
