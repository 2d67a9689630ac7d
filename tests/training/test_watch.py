"""Traces, memory and compilations of a run."""

import io
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vit_jax.config import ConfigError
from vit_jax.training import loop, metrics, watch
from vit_jax.training import run as run_lib


@pytest.mark.parametrize('steps', ['5', '0:3', '3:0', 'a:b'])
def test_steps_that_cannot_be_traced(tmp_path, steps):
  with pytest.raises(ConfigError, match=f'--profile={steps} .*100:5'):
    watch.Profile(steps, tmp_path)


def test_a_run_leaves_a_trace_and_counts_compilations(tiny, tmp_path):
  run = run_lib.prepare(tiny('total=5steps', 'eval.every=100%'))
  console = Console(file=io.StringIO(), width=80)
  loop.train(run, tmp_path, console, profile='2:2')
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  rows = [row for row in metrics.read(tmp_path) if 'compile/count' in row]
  assert rows[-1]['compile/seconds'] > 0
  # Nothing is compiled between the second step and the last.
  counts = [row['compile/count'] for row in rows]
  assert counts[1] == counts[3]
  assert 'compiled again' not in console.file.getvalue()


def test_figures_go_to_weights_and_biases_if_asked(tiny, tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match='pip install wandb'):
    run_lib.prepare(tiny('wandb=project'))
  calls = []
  online = types.SimpleNamespace(
    log=lambda values, step: calls.append((step, values)),
    finish=lambda: calls.append('finish'),
  )
  module = types.ModuleType('wandb')
  module.__spec__ = types.SimpleNamespace()
  module.init = lambda **settings: calls.append(settings) or online
  module.Image = np.asarray
  monkeypatch.setitem(sys.modules, 'wandb', module)
  config = tiny('total=3steps', 'eval.every=100%', 'wandb=project')
  console = Console(file=io.StringIO(), width=80)
  loop.train(run_lib.prepare(config), tmp_path, console)
  settings, *rows, last = calls
  assert settings['project'] == 'project' and settings['config']['seed'] == 0
  assert last == 'finish'
  stored = metrics.read(tmp_path)
  assert [{'step': step, **values} for step, values in rows] == stored
  writer = metrics.MetricsWriter(tmp_path, 3, 'project')
  file = io.BytesIO()
  Image.new('RGBA', (3, 2), 'red').save(file, 'png')
  writer.write_picture(3, 'test/samples', file.getvalue())
  writer.close()
  step, values = calls[-2]
  assert (
    step == 3 and values['test/samples'].tolist() == [[[255, 0, 0]] * 3] * 2
  )
  assert metrics.read(tmp_path) == stored


def test_memory_is_that_of_the_fullest_device_here():
  def device(process, stats):
    return types.SimpleNamespace(
      process_index=process, memory_stats=lambda: stats
    )

  full = {'bytes_in_use': 2**30, 'peak_bytes_in_use': 3 * 2**30}
  other = {'bytes_in_use': 2**31, 'peak_bytes_in_use': 2**31}
  far = {'bytes_in_use': 2**40, 'peak_bytes_in_use': 2**40}
  found = watch.memory([device(0, full), device(0, other), device(1, far)])
  assert found == {'memory/gib': 2.0, 'memory/peak_gib': 3.0}
  assert watch.memory([device(0, None)]) == {}


def test_what_made_a_function_be_compiled_again_is_named():
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  there = jax.sharding.SingleDeviceSharding(jax.devices()[1])

  def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=here)

  expected = {'a': shape(2), 'b': shape(3), 'c': shape(), 'd': shape()}
  got = {
    'a': jax.device_put(jnp.zeros(2), here),
    'b': jax.device_put(jnp.zeros(4), here),
    'c': jax.device_put(jnp.zeros(()), there),
    'e': jax.device_put(jnp.zeros(()), here),
  }
  lines = watch.difference(expected, got)
  assert len(lines) == 4 and lines[0] == 'b is float32[4], was float32[3]'
  assert lines[1].startswith('c lies as') and lines[2:] == [
    'd is missing', 'e is new',
  ]  # fmt: skip
  assert watch.difference({'a': expected['a']}, {'a': got['a']}) == []
