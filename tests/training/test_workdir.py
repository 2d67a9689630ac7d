"""A workdir holds one run of one configuration."""

import pytest

from vit_jax.config import ConfigError
from vit_jax.training import workdir


def test_a_workdir_holds_one_run_at_a_time(tmp_path):
  with (
    workdir.only_run_in(tmp_path),
    pytest.raises(ConfigError, match='Another run is going on'),
    workdir.only_run_in(tmp_path),
  ):
    raise AssertionError('both run')
  with workdir.only_run_in(tmp_path):
    pass


def test_keys_that_a_newer_version_adds_are_no_difference(tiny, tmp_path):
  config = tiny('mesh.fsdp=2', 'eval.every=1ep')
  before = tiny().to_dict()
  del before['data']['classes']
  workdir.check_same_run(before, config, tmp_path)
  before['seed'] = 1
  with pytest.raises(ConfigError, match='seed: was 1, is 0'):
    workdir.check_same_run(before, config, tmp_path)
  # Of a version that had other keys, at least what is the same is compared.
  before['model']['lost'] = 3
  with pytest.raises(ConfigError, match='model.lost: was 3, is None'):
    workdir.check_same_run(before, config, tmp_path)
