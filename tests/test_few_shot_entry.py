"""Few-shot evaluation during a run, and of what a run has left."""

import io
import json
import pathlib

import numpy as np
import pytest
from rich.console import Console

from vit_jax import config, few_shot, train
from vit_jax.training import metrics

DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
SMALL = (
  f'--config={DIGITS}',
  '--config.model.width=32',
  '--config.model.depth=1',
  '--config.total=40steps',
  '--config.batch_size=64',
  '--config.eval.every=20steps',
  '--config.checkpoint.every=20steps',
  '--config.log_every=1steps',
)
FEW = '--config.eval.few_shot.'


def call(main, *arguments):
  """Returns what a command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  main([str(argument) for argument in arguments], console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines()), default=0) <= 80
  return text


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run, evaluated by few examples on the way."""
  folder = tmp_path_factory.mktemp('digits')
  arguments = (*SMALL, f'--workdir={folder}')
  text = call(train.main, *arguments, f'{FEW}shots=(1,10)', f'{FEW}seeds=2')
  assert 'step 20  1_shot 0.' in text and 'few_shot/10_shot_std' in text
  return folder


def test_is_measured_with_every_evaluation_and_disturbs_nothing(
  workdir, tmp_path
):
  rows = metrics.read(workdir)
  measured = [row['step'] for row in rows if 'few_shot/10_shot' in row]
  assert measured == [row['step'] for row in rows if 'test/loss' in row]
  call(train.main, *SMALL, f'--workdir={tmp_path}')
  undisturbed = metrics.read(tmp_path)
  assert not any(key.startswith('few_shot/') for r in undisturbed for key in r)
  for name in ('train/loss', 'test/loss'):
    losses = [[r[name] for r in x if name in r] for x in (rows, undisturbed)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize('step', [20, 40])
def test_alone_gives_what_training_gave(workdir, step, capsys):
  call(few_shot.main, f'--workdir={workdir}', f'--step={step}', '--json')
  printed = json.loads(capsys.readouterr().out)
  (said,) = (
    row
    for row in metrics.read(workdir)
    if row['step'] == step and 'few_shot/1_shot' in row
  )
  assert [row['shots'] for row in printed['trained']] == [1, 10]
  for row in printed['trained']:
    accuracies = row['accuracies']
    name = f'few_shot/{row["shots"]}_shot'
    assert said[name] == np.mean(accuracies)
    assert said[f'{name}_std'] == np.std(accuracies, ddof=1)


def test_prints_a_table_beside_fresh_parameters(workdir):
  text = call(
    few_shot.main, f'--workdir={workdir}', '--random', '--shots=2,25',
    '--seeds=3', '--l2=1,1024', '--feature=blocks/block_00/output',
    '--source=digits', '--train-split=train[:80%]', '--test-split=train[80%:]',
    '--preprocess=resize(8)|value_range(-1, 1)',
  )  # fmt: skip
  assert 'blocks/block_00/output of step 40, 3 choices' in text
  assert 'accuracy, random' in text
  rows = [line.split() for line in text.splitlines() if '+-' in line]
  assert [row[0] for row in rows] == ['2', '25']
  # Shots; mean, +-, spread and l2 of either.
  assert {row[4] for row in rows} <= {'1', '1024'} and len(rows[0]) == 9
  assert 0.3 < float(rows[1][1]) <= 1


REFUSED = [
  ('--shots=1,a', '--shots=1,a is not understood: expected numbers'),
  ('--seeds=many', 'expected a whole number'),
  ('--l2=0', 'more than 0'),
  ('--feature=poold', "Did you mean 'pooled'"),
  ('--shots=500', 'needs 500 training examples of each class'),
  ('--source=folder:none', 'train: no folder none'),
  ('--test-split=tset', "test: digits has no split 'tset'"),
  ('--preprocess=resize(16)|value_range(-1, 1)', r'makes \(16, 16, 1\)'),
  ('--preprocess=flip_lr|value_range(-1, 1)', 'is random'),
  ('--checkpoint=x.npz', 'not both'),
]


@pytest.mark.parametrize('argument,message', REFUSED)
def test_requests_that_cannot_work(workdir, argument, message):
  with pytest.raises(config.ConfigError, match=message):
    call(few_shot.main, f'--workdir={workdir}', argument)


@pytest.mark.parametrize(
  'override,message',
  [
    ('feature=poold', "Did you mean 'pooled'"),
    ('seeds=0', 'seeds .* are 0'),
    ('test_split=tset', "no split 'tset'"),
    ('preprocess=flip_lr|value_range(-1, 1)', 'is random'),
  ],
)
def test_a_run_is_checked_before_it_starts(override, message):
  with pytest.raises(config.ConfigError, match=message):
    call(train.main, *SMALL, '--check', f'{FEW}shots=(5,)', FEW + override)
