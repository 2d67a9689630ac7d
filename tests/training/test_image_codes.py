"""What makes the codes of text_to_image: runs, and DALL-E's released model."""

import io
import pathlib

import jax
import numpy as np
import pytest
from rich.console import Console

from vit_jax import config as config_lib
from vit_jax import encode, evaluate, released
from vit_jax.config import ConfigError
from vit_jax.data import captions
from vit_jax.training import inputs, schema
from vit_jax.training import run as run_lib

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FILE = """
from ml_collections import ConfigDict

def get_config():
  data = dict(source='shapes:pixels=32', preprocess='value_range(0, 1)')
  return ConfigDict(dict(
    task=dict(name='text_to_image'),
    model=dict(
      name='dalle', text_vocabulary=587, text_length=12, image_vocabulary=48,
      grid=(4, 4), width=8, depth=1, mlp_dim=8, num_heads=1,
    ),
    data=dict(
      train=dict(split='train[:20]', **data),
      test=dict(split='test[:9]', **data),
    ),
    batch_size=8,
    total='10steps',
    optimizer=dict(name='sgd', learning_rate=0.1),
    schedule=dict(name='constant'),
    eval=dict(every='100%'),
    checkpoint=dict(every='100%'),
  ))
"""


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
  """The released model, as a folder and as the file that `convert` writes."""
  folder = tmp_path_factory.mktemp('dvae')
  for side in ('encoder', 'decoder'):
    with np.load(GOLDENS / f'dvae_{side}.npz') as file:
      names = [name for name in file.files if name.startswith('params/')]
      tensors = {name.removeprefix('params/'): file[name] for name in names}
    np.savez(folder / f'{side}.npz', **tensors)
  file = tmp_path_factory.mktemp('converted') / 'dvae.safetensors'
  released.write(file, released.read(folder), 'openai')
  return {'folder': folder, 'file': file}


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(FILE)
  return path


def resolved(recipe, *overrides):
  overrides = [f'--config.{override}' for override in overrides]
  settings = config_lib.load(str(recipe))
  return config_lib.resolve(settings, overrides, schema.SCHEMA)


def call(main, *arguments):
  console = Console(file=io.StringIO(), width=300)
  main([str(argument) for argument in arguments], console)
  return console.file.getvalue()


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_codes_of_a_run_are_those_of_the_released_model(paths, recipe, kind):
  run = run_lib.prepare(resolved(recipe, f'task.image_codes={paths[kind]}'))
  assert run.batch['image'].shape == (8, 32, 32, 3)
  variables = {'frozen': run.task.frozen.variables}
  with np.load(GOLDENS / 'dvae_encoder.npz') as golden:
    image = golden['input/image'].transpose(0, 2, 3, 1)
    codes = jax.jit(run.task.encode)(variables, image)
    np.testing.assert_array_equal(codes, golden['output/codes'])
  with np.load(GOLDENS / 'dvae_decoder.npz') as golden:
    pixels = jax.jit(run.task.decode)(variables, golden['input/codes'])
    expected = golden['output/pixels'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-4)


def test_images_are_of_the_size_that_has_so_many_codes(paths, recipe):
  resize = 'preprocess=resize((32, 48))|value_range(0, 1)'
  overrides = (
    f'task.image_codes={paths["file"]}', f'data.train.{resize}',
    f'data.test.{resize}',
  )  # fmt: skip
  run = run_lib.prepare(resolved(recipe, 'model.grid=(4, 6)', *overrides))
  assert run.task.frozen.task.image_shape == (32, 48, 3)
  with pytest.raises(ConfigError, match=r'reads images of \(32, 32, 3\)'):
    run_lib.prepare(resolved(recipe, *overrides))
  with pytest.raises(ConfigError, match=r'the model is for \(4,\).*set grid='):
    run_lib.prepare(
      resolved(
        recipe, 'model.grid=(4,)', overrides[0],
        *(f'data.{name}.preprocess=resize(256)|value_range(0, 1)'
          for name in ('train', 'test')),
      )
    )  # fmt: skip


def test_images_are_encoded_once_and_read_by_either(paths, recipe, tmp_path):
  out = tmp_path / 'codes'
  said = call(
    encode.main, f'--config={recipe}', f'--out={out}',
    f'--config.task.image_codes={paths["folder"]}',
  )  # fmt: skip
  assert '4 x 4 one of 48' in said
  overrides = (
    *(f'data.{name}.source=codes:{out}' for name in ('train', 'test')),
    'data.train.split=train', 'data.test.split=test',
  )  # fmt: skip
  with pytest.raises(ConfigError, match='code_width is 4.*image_codes is empt'):
    run_lib.prepare(resolved(recipe, 'model.code_width=4', *overrides))
  settings = resolved(recipe, f'task.image_codes={paths["file"]}', *overrides)
  run = run_lib.prepare(settings)
  assert run.batch['codes'].shape == (8, 16)
  images = captions.open_source('shapes:pixels=32', 'test[:9]')
  codes = captions.open_source(f'codes:{out}', 'test')
  variables = {'frozen': run.task.frozen.variables}
  batch = np.stack([images[n]['image'] for n in range(9)]).astype(np.float32)
  expected = jax.jit(run.task.encode)(variables, batch / 255)
  found = np.stack([codes[n]['codes'] for n in range(9)])
  assert len(np.unique(found)) > 2
  np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_what_it_keeps_of_images_is_measured(paths):
  said = call(
    evaluate.main, f'--checkpoint={paths["folder"]}', '--grid=4x4',
    '--config.data.test.source=shapes:pixels=32',
    '--config.data.test.split=test[:9]',
  )  # fmt: skip
  assert 'absolute_error' in said and 'codes_used' in said


def test_half_of_it_is_no_model(paths, recipe, tmp_path):
  (tmp_path / 'half').mkdir()
  whole = (paths['folder'] / 'encoder.npz').read_bytes()
  (tmp_path / 'half' / 'encoder.npz').write_bytes(whole)
  with pytest.raises(ConfigError, match=r'encoder\.\* and decoder'):
    run_lib.prepare(resolved(recipe, f'task.image_codes={tmp_path / "half"}'))


@pytest.mark.parametrize('name', ['train', 'test'])
@pytest.mark.parametrize('task', ['discrete_vae', 'text_to_image'])
def test_pixels_are_from_0_to_1(recipe, task, name):
  settings = config_lib.load(str(recipe))
  if task == 'discrete_vae':
    settings.task = dict(name=task)
    settings.model = dict(name=task)

  def check(text):
    override = f'--config.data.{name}.preprocess={text}'
    inputs.open_inputs(config_lib.resolve(settings, [override], schema.SCHEMA))

  for text, message in (
    ('value_range(-1, 1)', "from -1 to 1, but .* Use 'value_range.0, 1.'"),
    ('standardize(0.5, 0.25)', 'from -2 to 2'),
    ('resize(32)', r"leaves bytes.*Add '\|value_range.0, 1.'"),
  ):
    with pytest.raises(ConfigError, match=f'{name}.preprocess.*{message}'):
      check(text)
  check('standardize(0, 1)')


def test_what_makes_no_codes_is_refused(recipe, tmp_path):
  path = GOLDENS / 'vit_tok_bv.npz'
  message = 'vit_tok_bv.npz, where Classification.*run of a discrete VAE'
  with pytest.raises(ConfigError, match=message):
    run_lib.prepare(resolved(recipe, f'task.image_codes={path}'))
  with pytest.raises(ConfigError, match=message):
    call(
      encode.main, f'--config={recipe}', f'--out={tmp_path / "codes"}',
      f'--config.task.image_codes={path}',
    )  # fmt: skip
  assert not (tmp_path / 'codes').exists()
