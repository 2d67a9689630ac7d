"""Samples and reconstructions while they are learned, and nothing changed."""

import contextlib
import io
import pathlib
import struct

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from vit_jax import config as config_lib
from vit_jax.training import checkpoint, loop, metrics, report, rules, schema
from vit_jax.training import run as run_lib

SOURCE = dict(source='shapes:pixels=16', preprocess='value_range(0, 1)')
COMMON = dict(
  data=dict(
    train=dict(split='train', **SOURCE), test=dict(split='test[:9]', **SOURCE)
  ),
  batch_size=8,
  total='6steps',
  optimizer=dict(name='adamw', learning_rate=1e-2),
  schedule=dict(name='constant'),
  eval=dict(every='2steps'),
  checkpoint=dict(every='6steps', keep=9),
  log_every='1steps',
)
VAE = dict(
  task=dict(name='discrete_vae', likelihood='logit_normal'),
  model=dict(
    name='discrete_vae', width=8, blocks_per_group=1, groups=1,
    vocabulary_size=19, code_width=4, stem_size=3, patch_size=4,
    codebook_std=1.0,
  ),
)  # fmt: skip
DALLE = dict(
  task=dict(name='text_to_image'),
  model=dict(
    name='dalle', text_vocabulary=587, text_length=12, image_vocabulary=19,
    grid=(4, 4), width=8, depth=1, mlp_dim=8, num_heads=1,
  ),
)  # fmt: skip


def train(workdir, sections, *overrides):
  """Returns what a run says."""
  overrides = [f'--config.{override}' for override in overrides]
  settings = config_lib.resolve(COMMON | sections, overrides, schema.SCHEMA)
  console = Console(file=io.StringIO(), width=300)
  run = run_lib.prepare(settings, jax.devices()[:1])
  loop.train(run, pathlib.Path(workdir), console)
  return console.file.getvalue()


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('vae')
  train(workdir, VAE)
  return workdir


def drawn(workdir):
  """Returns the PNG files of a report, by name."""
  folder = workdir / 'report'
  return {
    path.relative_to(folder).with_suffix('').as_posix(): path.read_bytes()
    for path in folder.rglob('*.png')
  }


def shown(workdir):
  """Returns the names and steps of images that TensorBoard has."""
  found = []
  for path in (workdir / 'tensorboard').iterdir():
    rest = path.read_bytes()
    while rest:  # Records: length, its checksum, content and its checksum.
      (size,) = struct.unpack('<Q', rest[:8])
      event = event_pb2.Event.FromString(rest[12 : 12 + size])
      rest = rest[16 + size :]
      found += [
        (value.tag, event.step)
        for value in event.summary.value
        if value.image.encoded_image_string
      ]
  return found


def test_each_evaluation_leaves_its_sheet(vae):
  files = drawn(vae)
  kept = [f'reconstructions/{step:08}' for step in (2, 4, 6)]
  assert files.keys() == {
    *kept, 'reconstructions', 'codes_used', 'loss', 'learning_rate', 'speed'
  }  # fmt: skip
  assert len({files[name] for name in kept}) == 3
  assert files['reconstructions'] == files[kept[-1]]
  name = 'test/reconstructions'
  assert shown(vae) == [(name, 2), (name, 4), (name, 6)]


def test_a_report_that_was_cut_off_is_drawn_again(vae):
  before = drawn(vae)
  assert 'This run is finished' in train(vae, VAE)
  for name in ('loss', 'codes_used'):
    (vae / 'report' / f'{name}.png').unlink()
  assert 'This run is finished' not in train(vae, VAE)
  assert drawn(vae) == before


def test_stopped_in_drawing_goes_on_as_if_undisturbed(
  vae, tmp_path, monkeypatch
):
  dalle = DALLE | dict(task=DALLE['task'] | dict(image_codes=str(vae)))
  expected, stopped = tmp_path / 'undisturbed', tmp_path / 'stopped'
  train(expected, dalle)

  asked = []

  @contextlib.contextmanager
  def requests():
    yield lambda: bool(asked)

  def write_examples(*arguments, **options):
    asked.append(1)
    return original(*arguments, **options)

  original = report.write_examples
  with monkeypatch.context() as stopping, pytest.raises(loop.Preempted):
    stopping.setattr(loop, 'stop_requests', requests)
    stopping.setattr(report, 'write_examples', write_examples)
    train(stopped, dalle)
  assert len(asked) == 1 and not drawn(stopped)
  assert 'Going on from step 2' in train(stopped, dalle)

  def results(workdir):
    with checkpoint.Checkpoints(workdir / 'checkpoints') as saved:
      tree, _, step = saved.load()
    figures = [
      {k: x for k, x in row.items() if k.startswith(('step', 'train', 'test'))}
      for row in metrics.read(workdir)
    ]
    return rules.by_path(tree), step, figures

  (found, *rest), (state, *others) = map(results, (stopped, expected))
  assert rest == others and rest[0] == 6
  assert sum('test/loss' in row for row in rest[1]) == 3
  for path, value in state.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)
  sheets = [
    {name: png for name, png in drawn(x).items() if 'samples' in name}
    for x in (stopped, expected)
  ]
  assert sheets[0] == sheets[1]
  steps = [f'samples/{step:08}' for step in (2, 4, 6)]
  assert sheets[0].keys() == {'samples', *steps}
  assert len({sheets[0][name] for name in steps}) == 3
