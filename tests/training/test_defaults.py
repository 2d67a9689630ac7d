"""What a configuration leaves open follows from model, batch and memory."""

import jax
import pytest

from vit_jax import config as config_lib
from vit_jax.training import defaults, memory, schema
from vit_jax.training import run as run_lib

GIB = 2**30
OPEN = defaults.Choice()


def needs(parameters, example, **fields):
  """A model of so many GiB, with two moments, on 8 devices."""
  sizes = (1, 2, 4, 8)
  return memory.Needs(
    state={size: int(3 * parameters / size * GIB) for size in sizes},
    gradients={size: int(parameters / size * GIB) for size in sizes},
    weights=int(parameters / 2 * GIB),
    example=int(example * GIB),
    **fields,
  )


SMALL, LARGE = needs(0.3, 0.1), needs(2.5, 0.8)
WITH_SCAN = needs(0.3, 0.1, scan=True)
WHOLE = needs(0.3, 0.1, parts=False)


@pytest.mark.parametrize(
  'what,examples,said,expected',
  [
    (SMALL, 64, OPEN, (1, 1, 'none')),
    # It would fit, but a step is faster in two parts.
    (SMALL, 192, OPEN, (1, 2, 'none')),
    (SMALL, 192, defaults.Choice(accumulate=1), (1, 1, 'none')),
    (SMALL, 512, OPEN, (1, 4, 'none')),
    (SMALL, 3 * 127, OPEN, (1, 3, 'none')),
    (LARGE, 512, OPEN, (4, 32, 'none')),
    (LARGE, 512, defaults.Choice(fsdp=8), (8, 32, 'none')),
    (SMALL, 512, defaults.Choice(accumulate=2), (1, 2, 'names')),
    (WITH_SCAN, 512, OPEN, (1, 16, 'none')),
    (WHOLE, 384, OPEN, (1, 1, 'names')),
    (WHOLE, 512, OPEN, (1, 1, 'full')),
    (WHOLE, 4096, OPEN, (1, 1, 'full')),
    (needs(0.3, 8.0), 64, OPEN, (1, 16, 'names')),
    (needs(0.3, 30.0), 64, OPEN, (1, 64, 'full')),
  ],
)
def test_the_fastest_that_should_fit(what, examples, said, expected):
  choice, found = defaults.choose(what, examples, 15.48 * GIB, said)
  assert (choice.fsdp, choice.accumulate, choice.remat) == expected
  assert (found.bytes < 15.48 * GIB) == (examples < 4096)
  line = defaults.sentence(choice, found, said, 15.48 * GIB)
  assert 'of 15.5 GiB a device' in line and '\n' not in line
  assert ('may not fit' in line) == (examples == 4096)
  assert ('mesh.fsdp=' in line) == (said.fsdp is None)


def test_micro_batches_add_their_gradients_up():
  one, two = (
    defaults.estimate(SMALL, defaults.Choice(1, parts, 'none'), 64)
    for parts in (1, 2)
  )
  assert two.others - one.others == SMALL.gradients[1]
  assert one.activations == pytest.approx(2 * two.activations)


def test_a_loop_gathers_one_layer_at_a_time():
  whole, split = (
    defaults.estimate(WITH_SCAN, defaults.Choice(fsdp, 1, 'none'), 64).others
    for fsdp in (1, 2)
  )
  assert whole == WITH_SCAN.gradients[1] + WITH_SCAN.weights
  assert split == WITH_SCAN.gradients[2]
  unrolled = defaults.estimate(SMALL, defaults.Choice(2, 1, 'none'), 64).others
  assert unrolled == SMALL.gradients[2] + SMALL.weights


def tiny(*overrides):
  config = config_lib.load('configs/digits.py')
  return config_lib.resolve(
    config, [f'--config.{override}' for override in overrides], schema.SCHEMA
  )


def settled(config):
  return config.mesh.fsdp, config.optimizer.accumulate, config.model.remat


@pytest.fixture
def small_memory(monkeypatch):
  """The devices have 11.8 MiB, less than all of a batch needs."""
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(memory.GIB, kind, 0.0115)


def test_where_the_memory_is_not_known_nothing_is_chosen():
  run = run_lib.prepare(tiny())
  assert settled(run.config) == (1, 1, 'none') and run.chosen == ''


def test_what_is_chosen_is_what_runs(small_memory):
  run = run_lib.prepare(tiny())
  assert settled(run.config) == (1, 2, 'none')
  assert run.chosen.startswith(
    'Chosen: mesh.fsdp=1, optimizer.accumulate=2, remat=none; about 0.0 of 0.0'
  )


def test_what_is_said_stays(small_memory):
  said = ('mesh.fsdp=1', 'optimizer.accumulate=1', 'model.remat=none')
  run = run_lib.prepare(tiny(*said))
  assert settled(run.config) == (1, 1, 'none') and run.chosen == ''
  run = run_lib.prepare(tiny('optimizer.accumulate=1', 'mesh.data=8'))
  assert settled(run.config) == (1, 1, 'names')
  assert run.chosen.startswith('Chosen: remat=names;')


def test_what_differentiation_keeps_is_counted_an_example():
  config = tiny('mesh.fsdp=1', 'optimizer.accumulate=1', 'model.remat=none')
  run = run_lib.prepare(config)
  found = memory.measure(config, jax.devices(), run.task)
  leaves = jax.tree.leaves(run.state.params)
  parameters = sum(4 * leaf.size for leaf in leaves)
  # Two moments each; and two counts, the step and a key.
  assert found.gradients[1] == parameters
  assert 3 * parameters < found.state[1] < 3 * parameters + 64
  # Of each block at least 16 tokens of: two inputs of norms, query, key, value,
  # attention's output (96 wide) and the hidden layer (192 wide).
  least = 4 * 16 * (6 * 96 + 192) * 4
  assert least < found.example < 4 * least


@pytest.mark.parametrize('scan', [False, True])
def test_large_parameters_are_split(scan):
  config = tiny(
    'model.width=512', 'mesh.fsdp_minimum_mib=0.1', 'mesh.fsdp=1',
    'optimizer.accumulate=1', 'model.remat=none', f'model.scan={scan}',
  )  # fmt: skip
  run = run_lib.prepare(config)
  found = memory.measure(config, jax.devices(), run.task)
  sizes = sorted(found.state)
  assert sizes == [1, 2, 4, 8][: len(sizes)] and found.scan == scan
  for size in sizes:
    # All but biases, norms and the stem.
    share = found.state[size] / found.state[1]
    assert 1 / size <= share < 1 / size + 0.02
