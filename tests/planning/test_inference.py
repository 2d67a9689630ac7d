"""The largest batch of predictions for every resolution."""

import contextlib
import io
import types

import pytest
from rich.console import Console

from vit_jax.config import ConfigError
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT
from vit_jax.planning import (
  compilation,
  estimate,
  inference,
  program,
  topologies,
)
from vit_jax.tasks.classification import Classification

GIB = 2**30


@pytest.fixture
def found(tmp_path, monkeypatch):
  """Resolutions of patches of 14 px, as if a pixel took a KiB."""

  def plan(task, topology, folder, images):
    pixels = task.image_shape[0] ** 2
    needed = GIB + images * pixels * 2**10
    result = compilation.Result(
      needed <= topology.kind.hbm_gib * GIB,
      needed,
      0.0,
      0.0,
      memory={'activations and temporaries': needed - GIB},
      program=program.Program(cycles=images * pixels),
    )
    mesh = {'data': 1, 'fsdp': 1, 'tensor': 1}
    work = 10**6 * images * pixels
    return estimate.Plan(topology, mesh, images, 1, work, work, result, False)

  monkeypatch.setattr(inference, '_plan', plan)
  model = ViT(2, patch_size=14, width=8, depth=1, mlp_dim=8, num_heads=1)
  return inference.over_resolutions(
    Classification(model, ('a', 'b'), (224, 224, 3)),
    topologies.parse('v3-8'),
    tmp_path,
    lambda what: contextlib.nullcontext(),
  )


def test_what_does_not_predict_is_refused():
  with pytest.raises(ConfigError, match='this is SimpleNamespace with ResNet'):
    model = ResNet(2, stages=(1,))
    inference.check(types.SimpleNamespace(model=model))


def test_the_largest_batch_of_each_resolution(found):
  assert [each.size for each in found] == [70, 126, 224, 378, 518]
  for each in found:
    most = int((15.48 - 1) * GIB / (each.size**2 * 2**10))
    assert each.largest <= most <= each.largest + max(1, each.largest // 16)


def test_the_table_and_the_picture_show_all_of_them(found):
  console = Console(file=io.StringIO(), width=80)
  console.print(inference.show('Predictions', found))
  text = console.file.getvalue()
  speed, batch = inference.draw('Predictions', found).axes
  for each in found:
    assert f' {each.size} ' in text and f' {each.largest:,} ' in text
  points = batch.lines[0].get_xydata()
  assert [tuple(row) for row in points] == [
    (each.size, each.largest) for each in found
  ]
  # 64 images of 518 px do not fit.
  timed = [each.size for each in found if each.plan.result.fits]
  assert list(speed.lines[0].get_xdata()) == timed == [70, 126, 224, 378]
