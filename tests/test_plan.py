"""What a person asks of `plan`, with and without the TPU compiler."""

import importlib.util
import io
import json
import pathlib

import jax
import pytest
from rich.console import Console

from vit_jax import config, plan
from vit_jax.planning import compilation, program, topologies

DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
SMALL = (
  f'--config={DIGITS}',
  '--config.model.width=256',
  '--config.model.depth=1',
  '--config.model.mlp_dim=1024',
  '--config.batch_size=512',
)
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install -e .[plan]',
)


def call(*arguments):
  """Returns what the command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  plan.main([str(argument) for argument in arguments], console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines())) <= 80
  return text


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Nothing is remembered from one test to another."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def compiler(monkeypatch):
  """Stands for the compiler: what has remat, or one core, fits."""
  monkeypatch.setattr(
    topologies, 'devices', lambda topology: jax.devices()[: topology.size]
  )

  def remembered(lowered, topology, folder):
    text = lowered.as_text()
    fits = 'optimization_barrier' in text or '8 : i32' not in text
    if not fits:
      return compilation.Result(False, 2**36, 1.0, 2.0), False
    return compilation.Result(
      True, 2**31, 1.0, 2.0,
      memory={'parameters': 2**31},
      peak_bytes=2**30,
      program=program.Program(cycles=940_000),
    ), False  # fmt: skip

  monkeypatch.setattr(compilation, 'remembered', remembered)


def test_a_plan_that_does_not_fit_comes_with_one_that_does(compiler, tmp_path):
  file = tmp_path / 'plan.json'
  text = call(*SMALL, f'--json={file}')
  written = json.loads(file.read_text())
  assert 'v3-8: 4 chips (2 x 2), 8 cores, 1 host; JAX sees 8 cores' in text
  assert 'does not fit: it needs at least 64.00 GiB of the 15.48' in text
  assert 'It fits with\n--config.model.remat=names\n' in text
  assert not written['fits'] and written['fits_with']['fits']
  assert written['fits_with']['overrides'] == ['--config.model.remat=names']
  assert written['fits_with']['step_s'] == pytest.approx(1e-3)
  for part in ('2.00 GiB', '1 ms', 'core-days', 'MFU'):
    assert part in text, part


def test_configurations_and_topologies_side_by_side(compiler):
  remat = '--config.model.remat=full'
  names = f'{DIGITS},{DIGITS}'
  text = call(f'--compare={names}', *SMALL[1:], remat)
  assert text.count('512') == 2 and text.count('2.00') == 2
  text = call(*SMALL, remat, '--sweep=topology', '--topology=v3-8,v3-32,v2-8')
  assert 'v2-8' in text and '7.48' in text


REFUSED = [
  ((), 'one of --config and --compare'),
  ((*SMALL, '--compare=a.py'), 'one of --config and --compare'),
  ((*SMALL, '--topology=v3-9'), 'There is no v3-9; there are v3-8'),
  ((*SMALL, '--sweep=bach'), "Did you mean 'batch'"),
  ((*SMALL, '--sweep=resolution'), 'go together'),
  ((*SMALL, '--inference'), 'go together'),
  ((*SMALL, '--plot=x.png'), 'draws --sweep=resolution only'),
  ((*SMALL, '--json=/nowhere/x.json'), 'cannot be written'),
  (('--compare=a.py', '--sweep=batch'), 'do not go together'),
]


@pytest.mark.parametrize('arguments,message', REFUSED)
def test_requests_that_cannot_work(arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    call(*arguments)


@needs_compiler
def test_what_the_compiler_says_is_what_was_expected(tmp_path):
  file = tmp_path / 'plan.json'
  call(*SMALL, f'--json={file}')
  found = json.loads(file.read_text())
  assert found['fits'] and found['devices'] == 8
  # Two moments of each parameter, tiles filled up.
  memory = found['memory']
  assert memory['optimizer state'] == pytest.approx(
    2 * memory['parameters'], rel=0.01
  )
  assert sum(memory.values()) == found['needed_bytes'] < found['memory_bytes']
  assert found['peak_bytes'] <= found['needed_bytes']
  assert found['compiler_flops_per_device'] * 8 == pytest.approx(
    found['executed_flops_per_step'], rel=0.03
  )
  assert set(found['collectives']) == {'all-reduce'}
  # The same again is remembered.
  assert 'Remembered: compiling' in call(*SMALL)


@needs_compiler
def test_parameters_that_are_split_are_gathered(tmp_path):
  file = tmp_path / 'plan.json'
  split = ('--config.mesh.fsdp=8', '--config.mesh.fsdp_minimum_mib=0.1')
  call(*SMALL, *split, f'--json={file}')
  found = json.loads(file.read_text())
  assert {'all-gather', 'all-reduce'} <= set(found['collectives'])
