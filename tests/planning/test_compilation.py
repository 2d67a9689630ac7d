"""What the compiler says is understood, and remembered by content."""

import importlib.metadata

import pytest

from vit_jax.planning import compilation, program, topologies


@pytest.mark.parametrize(
  'message,gib',
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (90.61G) exceeds available HBM (15.48G).',
      90.61,
    ),
    ('XLA:TPU compile: Used 17.30G of 15.48G hbm. Exceeded', 17.30),
    ('total memory (1.50T) exceeds available HBM (15.48G).', 1536),
    ('RESOURCE_EXHAUSTED: something else', None),
  ],
)
def test_refusals_name_the_memory(message, gib):
  needed = compilation.needed_bytes(message)
  assert needed == (gib and round(gib * 2**30))


class Lowered:
  def __init__(self, text):
    self.text = text

  def as_text(self):
    return self.text


RESULTS = [
  compilation.Result(False, None, 1.5, 2.5),
  compilation.Result(
    True,
    11,
    1.5,
    2.5,
    memory={'parameters': 4, 'others': 7},
    peak_bytes=10,
    program=program.Program(
      9, 10, {'all-reduce': program.Traffic(2, 30)}, 1, {'batch.image': 3}
    ),
    compiler_seconds=0.25,
  ),
]


@pytest.mark.parametrize('result', RESULTS)
def test_results_are_remembered_by_content(result, tmp_path, monkeypatch):
  compiled = []

  def compile_for(lowered):
    compiled.append(lowered.text)
    return result

  monkeypatch.setattr(compilation, 'compile_for', compile_for)
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1.0')
  v3, v4 = topologies.parse('v3-8'), topologies.parse('v4-8')

  def ask(text, topology):
    found = compilation.remembered(Lowered(text), topology, tmp_path / 'plan')
    assert found[0] == result
    return found[1]

  assert [ask('a', v3), ask('a', v3), ask('b', v3), ask('a', v4)] == [
    False, True, False, False,
  ]  # fmt: skip
  assert compiled == ['a', 'b', 'a']
  monkeypatch.setattr(importlib.metadata, 'version', lambda name: '1.1')
  assert not ask('a', v3)
  # One that was torn is made again.
  for file in (tmp_path / 'plan').iterdir():
    file.write_text(file.read_text()[:20])
  assert not ask('b', v3) and ask('b', v3)
