"""What has to fit between a configuration and the devices."""

import types

import numpy as np
import pytest

from vit_jax.config import ConfigError
from vit_jax.training import checks


def test_examples_are_not_split_over_processes(tiny):
  def mesh(*processes):
    devices = [types.SimpleNamespace(process_index=i) for i in processes]
    return types.SimpleNamespace(
      devices=np.array(devices).reshape(2, 1, 2),
      shape={'data': 2, 'fsdp': 1, 'tensor': 2},
    )

  checks.check_batches(tiny(), mesh(0, 0, 1, 1))
  # Each would read other examples for the same place.
  with pytest.raises(ConfigError, match='tensor is 2, which spans several'):
    checks.check_batches(tiny(), mesh(0, 1, 0, 1))
