"""Eight simulated devices and one compilation cache for all tests."""

import os
import pathlib

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Most of the time of a test is spent compiling: half of it is for speed that
# no test needs.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
)
# Before any device is asked for.
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
# Simulated devices share few threads: programs that sum across them wait for
# each other for ever if several run at once.
jax.config.update('jax_cpu_enable_async_dispatch', False)
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
jax.config.update(
  'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture
def shared() -> pathlib.Path:
  """The folder of reference data beside the checkout; skips without it."""
  folder = ROOT.parent / 'shared'
  if not folder.is_dir():
    pytest.skip('needs the reference data in ../shared')
  return folder
