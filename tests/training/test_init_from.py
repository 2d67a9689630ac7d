"""Starting from what was trained before: what is taken, and what is told."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax.config import ConfigError
from vit_jax.models import position
from vit_jax.training import init_from, loop, rules, saved
from vit_jax.training import run as run_lib

FEW = ('total=2steps', 'schedule.warmup=0steps', 'eval.every=100%')


def train(config, workdir):
  console = Console(file=io.StringIO(), width=80)
  loop.train(run_lib.prepare(config), workdir, console)
  return console.file.getvalue()


@pytest.fixture(scope='module')
def old(tiny, tmp_path_factory):
  """A run on the first five digits; its parameters by path."""
  workdir = tmp_path_factory.mktemp('old') / 'run'
  classes = "data.classes=('0','1','2','3','4')"
  rate = ('optimizer.learning_rate=0.1', 'checkpoint.every=100%')
  train(tiny(*FEW, classes, *rate, 'model.representation_size=16'), workdir)
  return workdir, rules.by_path(saved.read(workdir).params)


def started(config):
  """Returns the parameters that a run starts with, and what it says."""
  run = run_lib.prepare(config)
  with jax.set_mesh(run.mesh):
    state, origin = init_from.initial_state(run)
    fresh = run.init()
  return rules.by_path(state.params), rules.by_path(fresh.params), origin


def test_other_classes_get_a_fresh_head(tiny, old):
  workdir, params = old
  config = tiny(
    *FEW, f'init={workdir}', "data.classes=('5','6','7','8','9')",
    'model.representation_size=16',
  )  # fmt: skip
  got, fresh, origin = started(config)
  for path, value in got.items():
    expected = fresh if path.startswith('head/') else params
    np.testing.assert_array_equal(value, expected[path], path)
  assert origin.fresh == dict.fromkeys(
    ['head/bias', 'head/kernel'], 'other classes'
  )
  assert len(origin.loaded) == len(got) - 2 and not origin.left_out


def test_a_layer_of_pre_training_is_left_out_with_its_head(tiny, old):
  workdir, params = old
  config = tiny(
    *FEW, f'init={workdir}', "data.classes=('0','1','2','3','4')"
  )  # fmt: skip
  got, fresh, origin = started(config)
  np.testing.assert_array_equal(got['head/kernel'], fresh['head/kernel'])
  assert origin.left_out == ['pre_logits/bias', 'pre_logits/kernel']
  kernel = 'encoder/block_01/mlp/up/kernel'
  np.testing.assert_array_equal(got[kernel], params[kernel])


def test_positions_are_resized_and_scanned_layers_are_stacked(tiny, old):
  workdir, params = old
  size = 'resize((16, 8))|value_range(-1, 1)'
  config = tiny(
    *FEW, f'init={workdir}', 'model.scan=true', 'model.representation_size=16',
    f'data.train.preprocess={size}', f'data.test.preprocess={size}',
  )  # fmt: skip
  got, _, origin = started(config)
  where = 'position/embedding'
  expected = position.resize(params[where], (2, 2), (4, 2))
  np.testing.assert_array_equal(got[where], expected)
  assert origin.resized == {where: '2x2 to 4x2 patches'}
  assert origin.fresh['head/bias'] == '5 classes there, 10 here'
  for i in range(2):
    np.testing.assert_array_equal(
      got['encoder/blocks/attention/out/kernel'][i],
      params[f'encoder/block_{i:02d}/attention/out/kernel'],
    )


def test_scanned_blocks_start_fresh_all_or_none(tiny, old):
  workdir, _ = old
  config = tiny(
    *FEW, f'init={workdir}', 'model.scan=true', 'model.representation_size=16',
    "init.fresh=('encoder/block_01/.*',)",
  )  # fmt: skip
  with pytest.raises(ConfigError, match='block_01/.* but not all blocks'):
    started(config)


def test_what_does_not_fit_is_said_side_by_side(tiny, old):
  workdir, _ = old
  run = run_lib.prepare(
    tiny(*FEW, f'init={workdir}', 'model.mlp_dim=48', 'model.depth=1')
  )
  with pytest.raises(ConfigError) as caught:
    init_from.initial_state(run)
  text = str(caught.value)
  assert (
    'encoder/block_00/mlp/up/kernel: expected (32, 48), found (32, 32)' in text
  )
  assert 'encoder/block_01/mlp/up/bias: expected nothing, found (32,)' in text
  assert 'config.init.fresh' in text


def test_the_run_says_and_stores_where_it_came_from(tiny, old, tmp_path):
  workdir, params = old
  fresh = "init.fresh=('(head|pre_logits)/.*',)"
  config = tiny(*FEW, f'init={workdir}', fresh, 'optimizer.average=0.9')
  text = train(config, tmp_path)
  assert f'Starts from {workdir} (step 2)' in text
  assert 'left out  pre_logits/kernel' in text
  stored = json.loads((tmp_path / 'init.json').read_text())
  assert stored['path'] == str(workdir) and stored['step'] == 2
  assert stored['fresh']['head/bias'] == 'named by config.init.fresh'
  assert len(stored['loaded']) == len(params) - 4
  # Going on does not need what it started from, and does not start again.
  again = train(tiny(*FEW, f'init={workdir}', fresh, 'optimizer.average=0.9',
                     'total=3steps'), tmp_path)  # fmt: skip
  assert 'Starts from' not in again and 'Going on from step 2' in again


def test_rules_that_name_nothing_are_refused(tiny, old):
  workdir, _ = old
  run = run_lib.prepare(tiny(*FEW, f'init={workdir}', "init.fresh=('hed/.*',)"))
  with pytest.raises(ConfigError, match='no parameter matches'):
    init_from.initial_state(run)


def test_starts_from_a_released_checkpoint_of_another_size(tiny):
  path = pathlib.Path(__file__).parents[1] / 'goldens' / 'vit_token.npz'
  size = 'resize((16, 40))|value_range(-1, 1)'
  sizes = dict(patch_size=8, width=48, depth=3, mlp_dim=96, num_heads=3)
  config = tiny(
    *FEW, f'init={path}', 'model.pooling=token',
    *(f'model.{name}={value}' for name, value in sizes.items()),
    f'data.train.preprocess={size}', f'data.test.preprocess={size}',
    'data.expected.train_examples=64', 'data.expected.classes=7',
    'data.expected.image_shape=(16, 40, 3)', 'data.test.source=idx:nowhere',
    'data.train.source=idx:nowhere',
  )  # fmt: skip
  run = run_lib.prepare(config, planned=True)
  with jax.set_mesh(run.mesh):
    state, origin = init_from.initial_state(run)
  got = rules.by_path(state.params)
  with np.load(path) as file:
    kernel = file[
      'params/Transformer/encoderblock_2/MultiHeadDotProductAttention_1/'
      'out/kernel'
    ]
    old = file['params/Transformer/posembed_input/pos_embedding']
  np.testing.assert_array_equal(
    got['encoder/block_02/attention/out/kernel'], kernel
  )
  where = 'position/embedding'
  np.testing.assert_array_equal(
    got[where], position.resize(old, (4, 4), (2, 5))
  )
  assert origin.resized == {where: '4x4 to 2x5 patches'}
  assert origin.left_out == ['pre_logits/bias', 'pre_logits/kernel']
  assert origin.fresh['head/kernel'] == 'it read another layer'
