"""The text of a compiled program is read as it runs, loops included."""

import pytest

from vit_jax.planning import program

# As the TPU compiler writes it, shortened. The loop runs 5 times.
TEXT = """\
HloModule jit_step, is_scheduled=true

%condition (p.1: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(256)} constant(5)
  %p.1 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(256)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(1024)} compare(%i.1, %limit), direction=LT
}

%fused (f.0: f32[40,8,128], f.1: s32[]) -> f32[8,128] {
  %f.0 = f32[40,8,128]{2,1,0:T(8,128)} parameter(0)
  %f.1 = s32[]{:T(256)} parameter(1)
  ROOT %part = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%f.0, %f.1)
}

%body (p.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p.2 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x.2 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p.2), index=1
  %y.2 = f32[8,128]{1,0:T(8,128)S(1)} negate(%x.2), \
backend_config={"estimated_cycles":"100"}
  %z.2 = f32[8,128]{1,0:T(8,128)} all-reduce(%y.2), to_apply=%sum
  ROOT %t.2 = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) tuple(%x.2, %z.2)
}

ENTRY %main (a: f32[40,8,128], b: s32[], c: (s32[], f32[8,128])) -> f32[8] {
  %a = f32[40,8,128]{2,1,0:T(8,128)} parameter(0), \
metadata={op_name="state.params[\\'head\\'][\\'kernel\\']"}
  %b = s32[]{:T(256)} parameter(1), metadata={op_name="batch[\\'label\\']"}
  %slice = f32[8,128]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"7"}
  %pair = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) tuple(%b, %slice)
  %loop = (s32[]{:T(256)}, f32[8,128]{1,0:T(8,128)}) while(%pair), \
condition=%condition, body=%body
  %last = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %all = (f32[8,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)}) \
all-gather-start(%last), dimensions={0}
  %done = f32[16,128]{1,0:T(8,128)} all-gather-done(%all)
  ROOT %all-reduce-scatter.3 = f32[8,128]{1,0:T(8,128)} fusion(%done), \
kind=kCustom, calls=%scatter
}

%scatter (s.0: f32[16,128]) -> f32[8,128] {
  %s.0 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %s.1 = f32[16,128]{1,0:T(8,128)} all-reduce(%s.0), to_apply=%sum
  ROOT %s.2 = f32[8,128]{1,0:T(8,128)} slice(%s.1)
}
"""
TILE = 8 * 128 * 4


@pytest.fixture
def read():
  return program.read(TEXT)


def test_bodies_count_as_often_as_they_run(read):
  assert read.cycles == 7 + 5 * 100
  assert read.loops == 1


def test_the_longer_branch_counts():
  branches = """
%short (p: f32[8]) -> f32[8] {
  ROOT %a = f32[8] negate(%p), backend_config={"estimated_cycles":"3"}
}

%long (p: f32[8]) -> f32[8] {
  %b = f32[8] negate(%p), backend_config={"estimated_cycles":"20"}
  ROOT %c = f32[8] all-reduce(%b), to_apply=%sum
}

ENTRY %main (p: f32[8], i: s32[]) -> f32[8] {
  %p = f32[8] parameter(0)
  %i = s32[] parameter(1)
  %x = f32[8] conditional(%i, %p, %p), branch_computations={%short, %long}
  ROOT %y = f32[8] conditional(%i, %x, %x), true_computation=%long, \
false_computation=%short
}
"""
  found = program.read(branches)
  assert found.cycles == 40
  assert found.collectives['all-reduce'].count == 2


def test_collectives_by_kind_and_as_whole_arrays(read):
  assert read.collectives == {
    'all-reduce': program.Traffic(5, 5 * TILE),
    'all-gather': program.Traffic(1, 2 * TILE),
    'reduce-scatter': program.Traffic(1, 2 * TILE),
  }


def test_arguments_by_the_part_of_the_state(read):
  assert read.arguments == {'state.params': 40 * TILE, 'batch.label': 1024}


def test_traffic_is_what_passes_the_memory(read):
  sliced = TILE + 1024 + TILE  # One of 40, and the index.
  negated = TILE  # Its result stays in the core.
  reduced = TILE
  gathered = TILE
  scattered = 3 * TILE
  expected = sliced + 5 * (negated + reduced) + gathered + scattered
  assert read.hbm_bytes == expected


@pytest.mark.parametrize(
  'text,expected',
  [
    ('f32[]', 4),
    ('f32[3,5]', 60),
    ('pred[7]', 7),
    ('bf16[96,10]{0,1:T(8,128)(2,1)}', 16 * 128 * 2),
    ('f32[96,4,24]{0,2,1:T(8,128)}', 4 * 24 * 128 * 4),
    ('f32[]{:T(256)}', 1024),
    ('(f32[2]{0}, /*index=1*/s8[3]{0}, token[])', 11),
  ],
)
def test_bytes_of_types(text, expected):
  assert program.bytes_of(text) == expected
