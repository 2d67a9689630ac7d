"""What a person types, and what they see."""

import csv
import io
import itertools
import json
import pathlib
import re
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax import (
  benchmark,
  command_line,
  config,
  evaluate,
  evaluate_options,
  predict,
  train,
)
from vit_jax.training import saved, speed, trained

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


def test_evaluate_prints_what_it_found_whatever_comes_of_the_report(
  workdir, tmp_path, monkeypatch
):
  where = 'captions:file where group~^[/a], name~[a-f]'
  monkeypatch.setitem(
    evaluate._TASKS, 'metrics', lambda *unused: ({'found': 0.5}, {}, where)
  )
  arguments = f'--workdir={workdir}', f'--report={tmp_path / "report.md"}'
  text = call(evaluate.main, *arguments)
  assert text == f'step 40 on {where}\n  found        0.5000\n'
  assert (tmp_path / 'report.md').read_text().startswith('# Evaluation')

  def full(*unused):
    raise OSError('No space left on device')

  monkeypatch.setattr(evaluate, '_write_report', full)
  console = Console(file=io.StringIO(), width=80)
  with pytest.raises(OSError, match='No space'):
    evaluate.main([*arguments], console)
  assert console.file.getvalue() == text


def test_evaluate_knows_what_reads_each_option():
  read_by = evaluate_options.READ_BY
  assert {*itertools.chain(*read_by.values())} == evaluate._TASKS.keys() - {
    'metrics'
  }
  model = command_line.parser('', '')
  command_line.add_model(model)
  of_all = {'tasks', 'random', 'report', 'json', *vars(model.parse_args([]))}
  options = vars(evaluate_options.parser('').parse_args([]))
  assert options.keys() == of_all | read_by.keys()


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


def test_predict_writes_what_programs_read(workdir, tmp_path, capsys):
  (tmp_path / 'below').mkdir()
  for name in ('a, b.png', 'below/c.png'):
    Image.new('L', (8, 8), 100).save(tmp_path / name)
  (tmp_path / 'notes.txt').write_text('no image')
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(f'number {i}' for i in range(10)))
  arguments = (f'--workdir={workdir}', f'--classes={names}', '--top=2')
  call(predict.main, *arguments, '--format=csv', tmp_path)
  rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
  files = [str(tmp_path / name) for name in ('a, b.png', 'below/c.png')]
  assert [row['file'] for row in rows] == [files[0]] * 2 + [files[1]] * 2
  assert [row['rank'] for row in rows] == ['1', '2'] * 2
  assert all(row['class'].startswith('number ') for row in rows)
  call(predict.main, *arguments, '--format=json', tmp_path)
  objects = map(json.loads, capsys.readouterr().out.splitlines())
  for of_file, row in zip(objects, rows[::2]):
    best = of_file['classes'][0]
    assert of_file['file'] == row['file']
    assert (best['class'], best['probability']) == (
      row['class'], float(row['probability'])
    )  # fmt: skip


def test_models_that_cannot_be_named(workdir, tmp_path):
  two = tmp_path / 'two.txt'
  two.write_text('a\nb\n')
  run = f'--workdir={workdir}'
  for arguments, message in (
    ([run, '--checkpoint=x.npz'], 'not both'),
    (['--checkpoint=x.npz'], 'no such file'),
    ([run, f'--classes={two}'], 'names 2 classes, but the model has 10'),
    ([run, '--classes=imagnet'], 'one of imagenet'),
    ([run, tmp_path / 'nothing'], 'could not be read'),
    ([run, workdir / 'checkpoints'], 'no image file'),
  ):
    with pytest.raises(config.ConfigError, match=message):
      call(predict.main, *arguments, two)


def test_evaluate_on_another_number_of_devices(workdir, monkeypatch):
  whole = call(evaluate.main, f'--workdir={workdir}')
  # 30 cannot be split over 8 devices: padded to 32.
  text = call(
    evaluate.main, f'--workdir={workdir}', '--config.eval.batch_size=30'
  )
  assert text == whole
  make = trained.mesh_lib.make

  def too_few(settings):
    if settings.fsdp in (None, 1):
      return make(settings)
    raise config.ConfigError('config.mesh does not fit')

  monkeypatch.setattr(trained.mesh_lib, 'make', too_few)
  arguments = (f'--workdir={workdir}', '--config.mesh.fsdp=2')
  with pytest.raises(config.ConfigError, match='does not fit'):
    call(evaluate.main, *arguments)
  read = saved.read_variables

  def of_other_mesh(*arguments):
    params, others, meta, step = read(*arguments)
    meta['config']['mesh']['fsdp'] = 2
    return params, others, meta, step

  monkeypatch.setattr(saved, 'read_variables', of_other_mesh)
  assert call(evaluate.main, f'--workdir={workdir}') == whole


def test_evaluate_splits_parameters_as_asked(workdir):
  model = trained.load(
    workdir,
    overrides=('--config.mesh.fsdp=2', '--config.mesh.fsdp_minimum_mib=0'),
  )
  kernel = model.variables['params']['head']['kernel']
  assert 'fsdp' in kernel.sharding.spec


def test_parameters_that_do_not_fit_are_named(workdir, monkeypatch):
  params, others, meta, step = saved.read_variables(workdir)
  del params['head']
  broken = (params, others, meta, step)
  monkeypatch.setattr(saved, 'read_variables', lambda *_: broken)
  with pytest.raises(config.ConfigError, match='head/kernel: expected'):
    trained.load(workdir)


def test_best_is_what_the_run_says_even_if_its_config_is_torn(
  workdir, tmp_path
):
  with pytest.raises(config.ConfigError, match='keeps no best checkpoint'):
    call(evaluate.main, f'--workdir={workdir}', '--step=best')
  folder = tmp_path / 'run'
  call(
    train.main, *SMALL, f'--workdir={folder}',
    '--config.checkpoint.best=test/accuracy', '--config.optimizer.average=0.9',
  )  # fmt: skip
  (folder / 'config.json').write_text('{"torn')
  rows = [json.loads(r) for r in (folder / 'metrics.jsonl').open()]
  best = max(r['test/accuracy'] for r in rows if 'test/accuracy' in r)
  text = call(evaluate.main, f'--workdir={folder}', '--step=best')
  assert f'{best:.4f}' in text


def test_damage_stops_with_the_exit_code(workdir, tmp_path, monkeypatch):
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  for path in tmp_path.glob('checkpoints/*/meta/data.json'):
    path.write_text('{}')
  monkeypatch.setattr(sys, 'argv', ['x', f'--workdir={tmp_path}'])
  with pytest.raises(SystemExit) as ended:
    command_line.run(evaluate.main)
  assert ended.value.code == command_line.STOPPED


def test_predict_takes_many_files_in_calls_of_one_shape(
  workdir, tmp_path, monkeypatch
):
  files = []
  for i in range(19):
    files.append(tmp_path / f'{i}.png')
    Image.new('L', (8, 8), 10 * i).save(files[-1])
  arguments = (f'--workdir={workdir}', '--top=1', *files, files[0])
  text = call(predict.main, *arguments)
  monkeypatch.setattr(predict, '_BATCH', 6)  # 8, as there are 8 devices.
  assert call(predict.main, *arguments) == text
  assert text.count('%') == 20


def test_the_hint_of_predict_works(workdir, tmp_path):
  Image.new('RGB', (20, 8)).save(tmp_path / 'wide.png')
  options = f'--workdir={workdir}', tmp_path / 'wide.png'
  with pytest.raises(config.ConfigError) as error:
    call(predict.main, *options)
  (resize,) = re.findall(r"'(resize\(.*\)\|)'", str(error.value))
  text = call(
    predict.main, *options,
    f'--config.data.test.preprocess={resize}value_range(-1, 1)',
  )  # fmt: skip
  assert 'wide.png' in text.replace('\n', '') and '%' in text


def test_predict_names_what_it_cannot_read(workdir, tmp_path):
  Image.new('L', (8, 8)).save(tmp_path / 'good.png')
  (tmp_path / 'bad.png').write_text('no image')
  Image.new('RGB', (20, 8)).save(tmp_path / 'wide.png')
  with pytest.raises(config.ConfigError) as error:
    call(predict.main, f'--workdir={workdir}', *tmp_path.glob('*.png'))
  assert 'bad.png: not an image of a known format' in str(error.value)
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
  first = results['step']['first step, s']
  assert results['step']['start to first step, s'] > first > 0
  assert 'Written to' in text
  call(benchmark.main, *arguments, '--what=data')
  assert 'step' not in json.loads(path.read_text())
  with pytest.raises(config.ConfigError, match="Did you mean 'step'"):
    call(benchmark.main, *arguments, '--what=stop')


def test_data_speed_is_that_of_bursts_as_a_whole():
  def bursts():
    for number in itertools.count():
      if number >= 8 and number % 4 == 0:  # 8 are there already.
        time.sleep(0.04)
      yield number

  timing, _ = speed._drained(bursts(), held=11, count=8)
  assert sum(timing.others) >= 0.08  # Two bursts of four.
  assert timing.p50 < 0.01


def test_benchmark_checks_where_it_writes_before_it_measures(tmp_path):
  for given, message in (
    ('--repeats=0', 'measures nothing'),
    (f'--json={tmp_path}', 'cannot be written: Is a directory'),
    (f'--json={tmp_path}/none/x.json', 'cannot be written: No such file'),
  ):
    with pytest.raises(config.ConfigError, match=message):
      call(benchmark.main, *SMALL, given)


REFUSED = [
  (train.main, (), '--workdir is missing'),
  (train.main, ('--config.model.widht=3',), "Did you mean 'width'"),
  (train.main, ('--chekc',), "'--chekc'. Did you mean '--check'"),
  (train.main, ('--config.total', '5ep'), "no value: write it with a '='"),
  (train.main, ('--workdir=',), '--workdir is missing'),
  (evaluate.main, ('--workdir=nowhere',), 'no run in nowhere: no such folder'),
  (predict.main, ('--workdir=nowhere', 'x.png'), 'There is no run in nowhere'),
  (predict.main, ('x.png', '--top=0'), 'prints nothing'),
  (predict.main, ('x.png', '--tpo=a b'), "Did you mean '--top'"),
  (evaluate.main, ('--workdir=nowhere', '--step=last'), 'neither a number'),
  # Before anything is opened.
  (
    evaluate.main,
    ('--workdir=nowhere', '--report=none/x.md'),
    '--report=none/x.md cannot be written: No such file',
  ),
  (
    evaluate.main,
    ('--workdir=nowhere', f'--report={DIGITS.parent}'),
    'cannot be written: Is a directory. Name a file',
  ),
  # Though it is the default.
  (
    evaluate.main,
    ('--workdir=nowhere', '--seed=0'),
    '--seed is read only by generation, but --tasks=metrics is run',
  ),
  (
    evaluate.main,
    ('--workdir=nowhere', '--tasks=generation,metrics', '--prompts=cifar10'),
    '--prompts is read only by zero_shot, robustness, but --tasks=gen',
  ),
  (
    evaluate.main,
    ('--workdir=nowhere', '--tasks=metrics,few_shot', '--feature=pooled'),
    'no run in nowhere',
  ),
]


@pytest.mark.parametrize('main,arguments,message', REFUSED)
def test_requests_that_cannot_work(main, arguments, message, tmp_path):
  if main is train.main:
    arguments = (*SMALL, *arguments)
  with pytest.raises(config.ConfigError, match=message):
    call(main, *arguments)


@pytest.mark.parametrize(
  'override,message',
  [
    ('model.pooling=map', 'model.pooling cannot be changed after training'),
    ('eval.every=1ep', 'eval.every cannot be changed'),
    ('eval.batch_size=0', 'The batch size is 0'),
    ('data.test.preprocess=resize(16)|value_range(-1, 1)', r'\(16, 16, 1\)'),
    ('data.tests.split=test', "Did you mean 'test'"),
    ('mesh.data=3', 'does not fit 8 devices'),
  ],
)
def test_overrides_that_a_finished_run_refuses(workdir, override, message):
  with pytest.raises(config.ConfigError, match=message):
    call(evaluate.main, f'--workdir={workdir}', f'--config.{override}')


@pytest.mark.parametrize(
  'raised,code,message',
  [
    (config.ConfigError('wrong [key] :x:'), 2, 'error: wrong [key] :x:'),
    (command_line.TrainingError('not finite'), 3, 'error: not finite'),
    (command_line.BrokenDataError('7 of 9'), 3, 'error: 7 of 9'),
    (command_line.CheckpointError('torn'), 3, 'error: torn'),
    (command_line.Preempted(7), 75, 'step 7'),
    (KeyboardInterrupt(), 130, ''),
    (None, 0, ''),
  ],
)
def test_exit_codes(raised, code, message, monkeypatch, capsys):
  def main(arguments, console):
    console.print(':x:')
    if raised:
      raise raised

  monkeypatch.setattr(sys, 'argv', ['x'])
  with pytest.raises(SystemExit) as ended:
    command_line.run(main)
  assert ended.value.code == code
  said = capsys.readouterr()
  # No emoji is made of it, which may be in the name of a file.
  assert said.out == ':x:\n' and message in said.err
