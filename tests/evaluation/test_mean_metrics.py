"""Every example counts exactly once, whatever is done to the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import pipeline, preprocess
from vit_jax.evaluation import mean_metrics
from vit_jax.training import mesh as mesh_lib


class Source:
  """10,000 one-pixel images whose value is their number modulo 100."""

  class_names = ('even', 'odd')

  def __len__(self):
    return 10_000

  def __getitem__(self, index):
    value = np.full((1, 1, 1), index % 100, np.uint8)
    return {'image': value, 'label': index % 2}

  def name(self, index):
    return str(index)


class Task:
  def metrics(self, variables, batch):
    # Padding gives what must not count.
    value = batch['image'][:, 0, 0, 0].astype(jnp.float32)
    return {
      'value': jnp.where(value == 0, 0, value),
      'odd': batch['label'] * 1.0,
    }


@pytest.mark.parametrize('devices,batch_size', [(1, 128), (8, 192)])
def test_ten_thousand_of_ten_thousand(devices, batch_size):
  mesh = mesh_lib.make(mesh_lib.Settings(), jax.devices()[:devices])
  batches = pipeline.eval_batches(
    Source(), preprocess.parse('resize(1)'), batch_size=batch_size
  )
  with jax.set_mesh(mesh):
    means = mean_metrics.mean_metrics(
      mean_metrics.make_summed(Task()),
      {},
      (mesh_lib.to_mesh(batch, mesh) for batch in batches),
    )
  assert means == {'examples': 10_000, 'value': 49.5, 'odd': 0.5}


def test_padding_that_gives_nan_does_not_count():
  class Divides:
    def metrics(self, variables, batch):
      return {'inverse': 1 / batch['x'] - 1 / batch['x'] + batch['x']}

  batch = {'x': jnp.asarray([2.0, 0.0]), 'mask': jnp.asarray([1.0, 0.0])}
  summed = mean_metrics.make_summed(Divides())
  means = mean_metrics.mean_metrics(summed, {}, [batch])
  assert means == {'inverse': 2.0, 'examples': 1}
