"""A configuration says only what is used, and what it says is checked."""

import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from vit_jax import config
from vit_jax.config import ConfigError, Duration, Field, OneOf


def sgd(steps, /, *, momentum: float = 0.9):
  """An optimizer with one key."""


def adam(steps, /, *, b1: float = 0.9, b2: float = 0.99):
  """An optimizer with two keys."""


@dataclasses.dataclass
class Shared:
  learning_rate: float
  rules: tuple = ()


@dataclasses.dataclass
class Model:
  supplied: int
  size: int | None = None
  kind: Literal['plain', 'fancy'] = 'plain'
  scan: bool = False


SCHEMA = {
  'optimizer': OneOf({'sgd': sgd, 'adam': adam}, shared=Shared),
  'model': OneOf({'model': Model}, supplied=('supplied',)),
  'total': Field(Duration),
  'seed': Field(int, 0),
}
SAID = dict(
  optimizer=dict(name='adam', learning_rate=1),
  model=dict(name='model'),
  total='90ep',
)


def resolve(*overrides, **said):
  arguments = [f'--config.{override}' for override in overrides]
  return config.resolve(ConfigDict({**SAID, **said}), arguments, SCHEMA)


def test_defaults_are_filled_in_and_overrides_are_typed():
  resolved = resolve(
    'optimizer.b1=0.5', 'model.size=7', 'model.scan=true',
    "optimizer.rules=(('a.*', 2.0),)", 'model.kind=fancy',
  )  # fmt: skip
  assert resolved.to_dict() == {
    'optimizer': {
      'name': 'adam',
      'learning_rate': 1.0,
      'rules': (('a.*', 2.0),),
      'b1': 0.5,
      'b2': 0.99,
    },
    'model': {'name': 'model', 'size': 7, 'kind': 'fancy', 'scan': True},
    'total': '90ep',
    'seed': 0,
  }
  assert isinstance(resolved.optimizer.learning_rate, float)
  assert resolve('model.size=None').model.size is None


def test_what_is_resolved_resolves_to_itself():
  import json

  resolved = resolve("optimizer.rules=(('a.*', 2.0),)")
  stored = json.loads(json.dumps(resolved.to_dict()))
  assert config.resolve(stored, [], SCHEMA).to_dict() == resolved.to_dict()


def test_a_name_decides_which_keys_there_are():
  resolved = resolve('optimizer.momentum=0.5', 'optimizer.name=sgd')
  assert resolved.optimizer.momentum == 0.5
  assert 'b1' not in resolved.optimizer


REFUSED = [
  (['optimiser.b1=1'], r"optimiser is not a key.*Did you mean 'optimizer'\?"),
  (['optimizer.b3=1'], 'Known: b1, b2, learning_rate, name, rules'),
  (['optimizer.momentum=0.5'], 'optimizer.momentum is not a key'),
  (['optimizer.name=adm'], "'adm'. Did you mean 'adam'"),
  (['optimizer.b1=high'], r"b1 is 'high' \(str\), expected float"),
  (['model.size=1.5'], r'size is 1.5 \(float\), expected int'),
  (['model.size=True'], r'size is True \(bool\), expected int'),
  (['model.kind=plan'], "'plan'. Did you mean 'plain'"),
  (['model.supplied=1'], 'supplied is not a key'),
  (['total=90'], 'Write for example "300ep"'),
  (['total=90 epochs'], 'Write for example "300ep"'),
  (['total=1.2.3ep'], 'Write for example "300ep"'),
  (['optimizer=1'], 'is a section; set one of its keys'),
  (['seed.deep=1'], 'is a value; it has no key'),
]


@pytest.mark.parametrize('overrides,message', REFUSED)
def test_overrides_that_cannot_be_meant(overrides, message):
  with pytest.raises(ConfigError, match=message):
    resolve(*overrides)


def test_files_that_cannot_be_meant():
  with pytest.raises(ConfigError, match="config.sead is not used.*'seed'"):
    resolve(sead=1)
  with pytest.raises(ConfigError, match='learning_rate is missing'):
    resolve(optimizer=dict(name='sgd'))
  with pytest.raises(ConfigError, match='config.model has no name'):
    resolve(model=dict(size=1))
  with pytest.raises(ConfigError, match='expected a section'):
    resolve(model=3)
  with pytest.raises(ConfigError, match='--config.section.key=value'):
    config.resolve(SAID, ['--config.seed'], SCHEMA)


def test_loading_a_file(tmp_path):
  path = tmp_path / 'experiment.py'
  path.write_text('def get_config(arg="x"):\n  return {"total": arg}\n')
  assert config.load(str(path)) == {'total': 'x'}
  assert config.load(f'{path}:5ep') == {'total': '5ep'}
  with pytest.raises(ConfigError, match='experiment.py'):
    config.load(str(tmp_path / 'experimnt.py'))
  path.write_text('def get_config(:')
  with pytest.raises(ConfigError, match='not valid Python'):
    config.load(str(path))
  path.write_text('x = 1')
  with pytest.raises(ConfigError, match='no function get_config'):
    config.load(str(path))
  path.write_text('def get_config():\n  return {}\n')
  with pytest.raises(ConfigError, match="has no variants, so 'foo' means"):
    config.load(f'{path}:foo')
  path.write_text('def get_config():\n  return 3\n')
  with pytest.raises(ConfigError, match='returns int, expected a ConfigDict'):
    config.load(str(path))


@pytest.mark.parametrize(
  'text',
  ['import os\nx = os.nothing', 'def get_config():\n  return {}["depth"]'],
)
def test_an_error_inside_a_file_is_named_with_its_line(tmp_path, text):
  path = tmp_path / 'experiment.py'
  path.write_text(text)
  with pytest.raises(ConfigError, match=r'Error in .*experiment.py, line 2\)'):
    config.load(str(path))


@pytest.mark.parametrize(
  'duration,steps',
  [('90ep', 900), ('1000steps', 1000), ('5%', 50), ('1e3examples', 10)],
)
def test_durations(duration, steps):
  sizes = dict(batch_size=100, examples=1000, total=1000)
  assert config.to_steps(duration, **sizes) == steps


def test_steps_can_be_counted():
  with pytest.raises(ConfigError, match='at most 2,147,483,647'):
    config.to_steps('1e300ep', batch_size=1, examples=1, total=None)


def test_the_whole_run_cannot_be_a_share_of_itself():
  with pytest.raises(ConfigError, match='share of itself'):
    config.to_steps('5%', batch_size=1, examples=1, total=None)
