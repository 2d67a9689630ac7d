"""`python -m vit_jax.convert`: what a person types, and what they see."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from vit_jax import command_line, config, convert, released, train
from vit_jax.training import rules, saved
from vit_jax.training.build import Known

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'


def call(main, *arguments):
  """Returns what a command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  main([str(argument) for argument in arguments], console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines()), default=0) <= 80
  return text


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of two steps, whose blocks are stacked."""
  folder = tmp_path_factory.mktemp('digits')
  call(
    train.main, f'--config={DIGITS}', f'--workdir={folder}',
    '--config.model.width=16', '--config.model.depth=2',
    '--config.model.mlp_dim=24', '--config.model.scan=true',
    '--config.model.position=learned', '--config.model.pooling=token',
    '--config.total=2steps', '--config.batch_size=64',
    '--config.eval.every=2steps', '--config.checkpoint.every=2steps',
  )  # fmt: skip
  return folder


def test_inspect_says_what_a_file_is():
  text = call(convert.main, '--inspect', GOLDENS / 'vit_map.npz')
  for part in (
    'dialect       big_vision', 'patch_size = 8', "pooling = 'map'",
    '34,176 (0.1 MiB in float32)', 'grid          4 x 4',
    'image shape   32 x 32 x 3', 'class names   not known',
    'resize_small(37)|central_crop(32)|value_range(-1, 1)',
    'Names begin with params/', 'input/image', '32 x 4 x 8',
  ):  # fmt: skip
    assert part in text, part


def test_inspect_shows_the_tensors_of_what_it_cannot_read(tmp_path, capsys):
  np.savez(tmp_path / 'x.npz', **{'some[/bold]/name': np.ones((2, 3))})
  with pytest.raises(config.ConfigError, match='no model that is known here'):
    convert.main(
      ['--inspect', str(tmp_path / 'x.npz')], command_line.make_console()
    )
  text = capsys.readouterr().out
  assert 'some[/bold]/name' in text and '2 x 3' in text and 'float64' in text


def test_inspect_shows_the_tensors_of_a_run_without_released_format(
  tmp_path, monkeypatch
):
  settings = ConfigDict(
    dict(model=dict(name='dalle'), data=dict(test=dict(preprocess='')))
  )
  params = {'decoder': {'kernel': np.ones((2, 3), np.float32)}}
  known = Known((), (8, 8, 3))
  run = saved.Saved(tmp_path, settings, params, {}, known, True, 1)
  monkeypatch.setattr(saved, 'read', lambda *unused, **others: run)
  (tmp_path / 'checkpoints').mkdir()
  console = Console(file=io.StringIO(), width=80)
  with pytest.raises(config.ConfigError, match="No released.*model 'dalle'"):
    convert.main(['--inspect', str(tmp_path)], console)
  assert 'decoder/kernel' in console.file.getvalue()


def test_converts_to_another_dialect_and_back(tmp_path):
  source, other = GOLDENS / 'vit_token_norep.npz', tmp_path / 'folder'
  text = call(convert.main, source, other, '--grid=4x6')
  assert f'Wrote {other}' in text.replace('\n', '') and 'huggingface' in text
  with pytest.raises(config.ConfigError, match='is there already'):
    call(convert.main, source, other, '--grid=4x6')
  # Without --dialect: that of the file, and for others the usual one.
  back = tmp_path / 'back.npz'
  call(convert.main, other, back)
  expected = released.tensors(source)
  for name, tensor in released.tensors(back).items():
    np.testing.assert_array_equal(tensor, expected[f'params/{name}'])
  call(convert.main, GOLDENS / 'vit_tok_bv.npz', back, '--overwrite')
  assert released.read(back).dialect == 'big_vision'


def test_exports_a_run(workdir, tmp_path):
  call(convert.main, workdir, tmp_path / 'x.npz')
  found = released.read(tmp_path / 'x.npz')
  stacked = rules.by_path(saved.read(workdir).params)
  kernel = stacked['encoder/blocks/attention/query/kernel'][1]
  ours = found.params['encoder/block_01/attention/query/kernel']
  np.testing.assert_array_equal(ours, kernel)
  assert found.dialect == 'google' and found.image_shape == (8, 8, 1)
  call(convert.main, workdir, tmp_path / 'folder')
  found = released.read(tmp_path / 'folder')
  assert found.class_names == tuple('0123456789')
  text = call(convert.main, workdir, '--inspect')
  assert 'vit_jax' in text and 'encoder/block_*/, 2 times' in text
  assert 'mlp/up/kernel' in text
  assert '0, 1, 2, 3, 4, ...' in text


def test_converts_clip_if_told_what_its_tensors_do_not_say(tmp_path):
  source = GOLDENS / 'clip_vit.npz'
  target = tmp_path / 'clip.safetensors'
  with pytest.raises(config.ConfigError, match='--activation'):
    call(convert.main, source, target)
  told = ('--activation=quick_gelu', '--image-heads=3', '--text-heads=2')
  call(convert.main, source, target, *told)
  # Now the file says it.
  text = call(convert.main, '--inspect', target)
  assert 'quick_gelu' in text and 'openai' in text
  call(convert.main, target, tmp_path / 'folder')
  expected = released.read(target).params
  for path, tensor in released.read(tmp_path / 'folder').params.items():
    np.testing.assert_array_equal(tensor, expected[path], path)


@pytest.mark.parametrize('target', ['x.npz', 'x'])
@pytest.mark.parametrize('dialect', ['vit_jax', 'openai'])
def test_a_discrete_vae_is_written_as_safetensors(
  dialect, target, tmp_path, monkeypatch
):
  for side in ('encoder', 'decoder'):
    with np.load(GOLDENS / f'dvae_{side}.npz') as file:
      names = [name for name in file.files if name.startswith('params/')]
      tensors = {name.removeprefix('params/'): file[name] for name in names}
    np.savez(tmp_path / f'{side}.npz', **tensors)
  found = dataclasses.replace(released.read(tmp_path), dialect=dialect)
  monkeypatch.setattr(convert, '_read', lambda *unused: found)
  target = tmp_path / target
  message = r'a discrete_vae is written to a file that ends in \.safetensors'
  with pytest.raises(config.ConfigError, match=message):
    call(convert.main, tmp_path, target)
  call(convert.main, tmp_path, target.with_suffix('.safetensors'))
  again = released.read(target.with_suffix('.safetensors'))
  assert again.model == found.model
  with pytest.raises(config.ConfigError, match='of discrete_vae: openai'):
    call(convert.main, tmp_path, tmp_path / 'x.npz', '--dialect=mixer')
  found.model['groups'] = 1
  with pytest.raises(config.ConfigError) as caught:
    call(convert.main, tmp_path, tmp_path / 'y.safetensors')
  message = str(caught.value)
  assert 'groups is 1, can be 4' in message
  assert message.endswith('There is no other dialect for a discrete_vae.')


TOKEN = GOLDENS / 'vit_token.npz'
REFUSED = [
  ((TOKEN,), 'Give a TARGET'),
  ((TOKEN, 'x.npz', '--inspect'), 'Give a TARGET'),
  ((TOKEN, 'x.npz', '--gird=4x4'), "Did you mean '--grid'"),
  ((TOKEN, 'x.npz', '--config.model.width=3'), 'converted as it is'),
  ((TOKEN, 'x', '--dialect=google'), r'ends in \.npz, which x is not'),
  ((TOKEN, 'x.npz', '--dialect=huggingface'), 'a folder, which x.npz is not'),
  ((TOKEN, 'x.safetensors'), r'a vit is written to a file that ends in \.npz'),
  ((TOKEN, 'x'), 'representation_size is 40, can be 0'),
  (('none.npz', 'x.npz'), 'No such file'),
  (
    (GOLDENS / 'vit_sincos2d.npz', 'x', '--grid=4x6'),
    r'cannot express(.|\n)* Try --dialect=google or big_vision\.',
  ),
]


@pytest.mark.parametrize('arguments,message', REFUSED)
def test_requests_that_cannot_work(arguments, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(config.ConfigError, match=message):
    call(convert.main, *arguments)
  assert not list(tmp_path.iterdir())


def test_a_run_knows_its_grid(workdir):
  with pytest.raises(config.ConfigError, match='knows its own'):
    call(convert.main, workdir, '--inspect', '--grid=4x4')
