"""What a person types, and what they see."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import benchmark, command_line, config, evaluate, predict, train

DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
SMALL = (
  f'--config={DIGITS}',
  '--config.model.width=32',
  '--config.model.depth=1',
  '--config.total=40steps',
  '--config.batch_size=64',
  '--config.eval.every=20steps',
  '--config.checkpoint.every=20steps',
)


def call(main, *arguments):
  """Returns what a command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  main([str(argument) for argument in arguments], console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines()), default=0) <= 80
  return text


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run."""
  folder = tmp_path_factory.mktemp('digits')
  text = call(train.main, *SMALL, f'--workdir={folder}')
  assert 'finished' in text and 'test/accuracy' in text
  return folder


def test_check_prints_the_plan_and_makes_nothing(tmp_path):
  text = call(
    train.main, *SMALL, '--check', f'--workdir={tmp_path / "none"}',
    '--config.mesh.fsdp=2', '--config.mesh.fsdp_minimum_mib=0',
  )  # fmt: skip
  for part in (
    '1,437 examples, 10 classes', '64 x 8 x 8 x 1', '40 steps = 1.781 epochs',
    '(8 x cpu)', 'fsdp=2', "'fsdp'", 'GFLOP an image',
    '0.3 times the learning rate', '= 0.0003 independent', '20: 0.000',
  ):  # fmt: skip
    assert part in text, part
  assert not (tmp_path / 'none').exists()


def test_evaluate_gives_what_training_gave(workdir):
  said = [json.loads(r) for r in (workdir / 'metrics.jsonl').open()]
  accuracy = [r['test/accuracy'] for r in said if 'test/accuracy' in r]
  text = call(evaluate.main, f'--workdir={workdir}')
  assert f'{accuracy[-1]:.4f}' in text
  assert 'step 40' in text and '360' in text
  text = call(evaluate.main, f'--workdir={workdir}', '--step=20')
  assert f'{accuracy[0]:.4f}' in text
  text = call(
    evaluate.main, f'--workdir={workdir}', '--config.data.test.split=test[:10%]'
  )
  assert 'examples     36\n' in text


def test_predict_prints_names_and_probabilities(workdir, tmp_path):
  for name in ('one.png', 'two.jpg'):
    Image.new('L', (8, 8), 100).save(tmp_path / name)
  text = call(
    predict.main, f'--workdir={workdir}', '--top=10', *tmp_path.glob('*.*')
  )
  assert 'one.png' in text and 'two.jpg' in text
  shares = [float(w[:-1]) for w in text.split() if w.endswith('%')]
  assert len(shares) == 20
  np.testing.assert_allclose(sum(shares), 200, atol=1)


def test_predict_names_what_it_cannot_read(workdir, tmp_path):
  Image.new('L', (8, 8)).save(tmp_path / 'good.png')
  (tmp_path / 'bad.png').write_text('no image')
  Image.new('RGB', (20, 8)).save(tmp_path / 'wide.png')
  with pytest.raises(config.ConfigError) as error:
    call(predict.main, f'--workdir={workdir}', *tmp_path.glob('*.png'))
  assert 'bad.png' in str(error.value)
  assert 'wide.png: the image is (8, 20, 1)' in str(error.value)
  assert 'good.png' not in str(error.value)


def test_benchmark_measures_what_was_asked_for(tmp_path):
  path = tmp_path / 'speed.json'
  arguments = (*SMALL, '--repeats=2', f'--json={path}')
  text = call(benchmark.main, *arguments)
  results = json.loads(path.read_text())
  for what in ('step', 'inference', 'data'):
    assert f'{what} on 8 x cpu' in text
  assert results['step']['images/s per core'] > 0
  assert results['step']['step p95, ms'] >= results['step']['step p50, ms']
  assert results['data']['images per core-second'] > 0
  call(benchmark.main, *arguments, '--what=data')
  assert 'step' not in json.loads(path.read_text())
  with pytest.raises(config.ConfigError, match="Did you mean 'step'"):
    call(benchmark.main, *arguments, '--what=stop')


REFUSED = [
  (train.main, (), '--workdir is missing'),
  (train.main, ('--config.model.widht=3',), "Did you mean 'width'"),
  (train.main, ('--chekc',), "'--chekc'. Did you mean '--check'"),
  (evaluate.main, ('--workdir=nowhere',), 'nowhere holds no such model'),
  (evaluate.main, ('--workdir=nowhere', '--step=last'), 'neither a number'),
]


@pytest.mark.parametrize('main,arguments,message', REFUSED)
def test_requests_that_cannot_work(main, arguments, message, tmp_path):
  if main is train.main:
    arguments = (*SMALL, *arguments)
  with pytest.raises(config.ConfigError, match=message):
    call(main, *arguments)


@pytest.mark.parametrize(
  'raised,code,message',
  [
    (config.ConfigError('wrong [key]'), 2, 'error: wrong [key]'),
    (command_line.TrainingError('not finite'), 3, 'error: not finite'),
    (command_line.BrokenDataError('7 of 9'), 3, 'error: 7 of 9'),
    (command_line.Preempted(7), 75, 'step 7'),
    (None, 0, ''),
  ],
)
def test_exit_codes(raised, code, message, monkeypatch, capsys):
  def main(arguments, console):
    if raised:
      raise raised

  monkeypatch.setattr(sys, 'argv', ['x'])
  with pytest.raises(SystemExit) as ended:
    command_line.run(main)
  assert ended.value.code == code
  assert message in capsys.readouterr().err
