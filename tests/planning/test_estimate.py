"""From figures of one step to a run, by hand."""

import dataclasses

import pytest

from vit_jax.planning import compilation, estimate, program, topologies

RESULT = compilation.Result(
  True,
  2**30,
  1.0,
  2.0,
  memory={'parameters': 2**30},
  peak_bytes=2**29,
  program=program.Program(
    cycles=94_000_000,  # 0.1 s of a v3 core.
    hbm_bytes=9_000_000_000,  # 0.02 s of half a chip's 900 GB/s.
    collectives={
      'all-reduce': program.Traffic(3, 830_000_000),  # Twice, at 166 GB/s.
      'all-gather': program.Traffic(1, 1_660_000_000),  # Once.
    },
  ),
  compiler_seconds=0.07,
)


def plan_for(name):
  topology = topologies.parse(name)
  return estimate.Plan(
    topology,
    {'data': topology.size, 'fsdp': 1, 'tensor': 1},
    images=512,
    steps=10_000,
    model_flops=int(topology.size * 2e12),
    executed_flops=int(topology.size * 6.15e12),
    result=RESULT,
    remembered=False,
  )


def test_a_step_is_cycles_and_links():
  plan = plan_for('v3-8')
  assert plan.roofline == pytest.approx(
    {'arithmetic': 0.1, 'memory': 0.02, 'links': 0.02}
  )
  assert plan.seconds == pytest.approx(0.12)
  assert plan.utilisation == pytest.approx(2e12 / 0.12 / 61.5e12)
  assert plan.images_per_s == pytest.approx(512 / 0.12 / 8)
  assert plan.run_seconds == pytest.approx(1200)
  assert plan.device_days == pytest.approx(8 * 1200 / 86_400)


def test_without_a_clock_the_longest_of_the_others():
  plan = plan_for('v6e-8')
  assert plan.cycles_seconds is None
  assert plan.seconds == 0.07
  silent = dataclasses.replace(RESULT, compiler_seconds=None)
  plan = dataclasses.replace(plan, result=silent)
  assert plan.seconds == max(plan.roofline.values())


def test_json_has_what_a_refusal_has():
  plan = plan_for('v3-8')
  refused = dataclasses.replace(
    plan, result=compilation.Result(False, 2**35, 1.0, 2.0)
  )
  assert refused.to_json().items() <= {
    **plan.to_json(), 'fits': False, 'needed_bytes': 2**35, 'memory': {},
    'peak_bytes': None,
  }.items()  # fmt: skip
