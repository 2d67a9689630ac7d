"""What is tried when a run does not fit, and how the largest batch is found."""

import dataclasses

import pytest

from vit_jax import config as config_lib
from vit_jax.planning import (
  compilation,
  estimate,
  program,
  topologies,
  variations,
)
from vit_jax.training import schema

V3 = topologies.parse('v3-8')
FSDP = '--config.mesh.data=1 --config.mesh.fsdp=-1'
SAID = dict(
  task=dict(name='classification'),
  model=dict(
    name='vit', patch_size=4, width=32, depth=1, mlp_dim=32, num_heads=4
  ),
  data={
    split: dict(source='digits', split=split, preprocess='value_range(-1, 1)')
    for split in ('train', 'test')
  },
  batch_size=128,
  total='100steps',
  optimizer=dict(name='adamw', learning_rate=1e-3),
  schedule=dict(name='cosine', warmup='50steps'),
  eval=dict(every='6steps'),
  checkpoint=dict(every='4steps'),
)


def resolved(*overrides):
  return config_lib.resolve(SAID, overrides, schema.SCHEMA)


def planner(*overrides):
  """Returns what plans for 8 cores with 5.16 units of 3 GiB each.

  A run's state is 2 units, or next to nothing where it is split, of which the
  optimizer has one; an image of a micro-batch is one, of which
  rematerialisation keeps a part. To fill the memory costs time.
  """

  def plan(topology, changes):
    config = resolved(*overrides, *changes)
    split = config.mesh.fsdp not in (None, 1)
    accumulate = config.optimizer.accumulate or 1
    images = config.batch_size / 8 / accumulate
    kept = {'auto': 1, 'names': 0.5, 'full': 0.25}[config.model.remat]
    state = 0 if split else 2 - config.mesh.split_optimizer
    needed = int((state + images * kept) * 3 * 2**30)
    fits = needed <= 15.48 * 2**30
    cycles = config.batch_size * (200 if needed > 14 * 2**30 else 100)
    return estimate.Plan(
      topology=topology,
      mesh={'data': 1 if split else 8, 'fsdp': 8 if split else 1, 'tensor': 1},
      images=config.batch_size,
      steps=int(config.total.removesuffix('steps')),
      model_flops=1,
      executed_flops=1,
      result=compilation.Result(
        fits,
        needed,
        0.0,
        0.0,
        memory={'activations and temporaries': needed - 3 * 2**30 * state},
        program=program.Program(cycles=cycles),
      ),
      remembered=False,
      accumulate=accumulate,
    )

  return plan


@pytest.mark.parametrize('capacity', [0, 1, 5, 31, 32, 33, 1000, 12_345])
@pytest.mark.parametrize('start', [1, 8, 100])
def test_the_largest_is_found_to_a_sixteenth(capacity, start):
  asked = []

  def fits(number):
    asked.append(number)
    return number <= capacity

  found = variations.largest(fits, start)
  assert found <= capacity <= found + max(1, found // 16)
  assert min(asked) >= 1 and len(asked) == len(set(asked)) <= 24


@pytest.mark.parametrize(
  'batch_size,expected',
  [
    (28, '--config.mesh.split_optimizer=True'),
    (40, '--config.model.remat=names'),
    # Names alone would fill the memory.
    (48, '--config.model.remat=full'),
    (80, '--config.model.remat=full'),
    (128, '--config.optimizer.accumulate=8'),
    (160, f'{FSDP} --config.model.remat=full'),
    (304, f'{FSDP} --config.model.remat=full --config.optimizer.accumulate=2'),
    (328, f'{FSDP} --config.model.remat=full --config.batch_size=160'),
  ],
)
def test_the_first_remedy_that_works(batch_size, expected):
  override = f'--config.batch_size={batch_size}'
  plan_with = planner(override)
  plan = plan_with(V3, ())
  assert not plan.result.fits
  overrides, fitting = variations.first_that_fits(
    resolved(override), plan, plan_with
  )
  assert ' '.join(overrides) == expected
  assert fitting.result.fits


def test_what_cannot_fit_says_so():
  def never(topology, changes):
    plan = planner('--config.batch_size=8')(topology, changes)
    refused = dataclasses.replace(plan.result, fits=False)
    return dataclasses.replace(plan, result=refused)

  config = resolved('--config.batch_size=8')
  with pytest.raises(config_lib.ConfigError, match='at any batch size'):
    variations.first_that_fits(config, never(V3, ()), never)
  with pytest.raises(config_lib.ConfigError, match='Not even a batch of 8'):
    variations.over_batches(V3, never)


def test_the_sweep_keeps_the_images_of_the_run():
  plans = variations.over_batches(V3, planner())
  by_size = {plan.images: plan for _, plan in plans}
  assert max(n for n, plan in by_size.items() if plan.result.fits) == 24
  assert by_size[128].steps == 100
  assert by_size[24].steps == 534  # The same 12,800 images.


def test_a_sweep_starts_where_it_should_fit():
  asked = []

  def plan_with(topology, changes):
    asked.append(' '.join(changes))
    return planner('--config.batch_size=8')(topology, changes)

  fitting = plan_with(V3, ())
  assert variations.guess(fitting) == 23
  full = dataclasses.replace(fitting.result, needed_bytes=16 * 2**30)
  assert variations.guess(dataclasses.replace(fitting, result=full)) == 8
  variations.over_batches(V3, plan_with)
  assert '--config.batch_size=16 ' in asked[2]


def test_the_sweep_keeps_the_parts_of_the_run():
  asked = []

  def plan_with(topology, changes):
    asked.append([*changes])
    # As if four parts had been chosen.
    return planner('--config.optimizer.accumulate=4')(topology, changes)

  plans = variations.over_batches(V3, plan_with)
  assert all('--config.optimizer.accumulate=4' in each for each in asked[1:])
  assert all(plan.images % 32 == 0 for _, plan in plans)


def test_a_remedy_that_is_refused_is_left_out():
  plan_with = planner('--config.batch_size=128')

  def picky(topology, changes):
    if any('accumulate' in change for change in changes):
      raise config_lib.ConfigError('batch norm wants whole batches')
    return plan_with(topology, changes)

  config = resolved('--config.batch_size=128')
  overrides, _ = variations.first_that_fits(config, picky(V3, ()), picky)
  assert ' '.join(overrides) == f'{FSDP} --config.model.remat=full'


def test_topologies_that_do_not_go_are_named():
  def plan_with(topology, changes):
    if topology.size > 8:
      raise config_lib.ConfigError('does not fit 32 devices')
    return planner()(topology, changes)

  plans, refused = variations.over_topologies(['v3-8', 'v3-32'], plan_with)
  assert [name for name, _ in plans] == ['v3-8']
  assert refused == ['v3-32: does not fit 32 devices']
  with pytest.raises(config_lib.ConfigError, match='^does not fit 32 devices$'):
    variations.over_topologies(['v3-32', 'v4-64'], plan_with)
  with pytest.raises(config_lib.ConfigError, match='There is no v3-9'):
    variations.over_topologies(['v3-8', 'v3-9'], None)
