"""What looks at pictures for `evaluation`: models trained here, and Inception.

Figures bear the name of the network: `vit_classification` for a ViT that was
trained to classify, `inception_v3` for the network of FID. With the latter,
`generation/inception_v3_frechet` is FID, and the Inception score is that of
papers, as far as numbers of pictures and their sizes are the same.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import released
from vit_jax.config import ConfigError
from vit_jax.evaluation import few_shot, picture_quality
from vit_jax.models import inception
from vit_jax.training import inputs, records, trained
from vit_jax.training import mesh as mesh_lib

# Pictures that go through the model at a time, at most.
_BATCH = 64

# Returns what `Network.look` does, of a batch: from variables and images.
Look = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array | None]]


def of_path(path: pathlib.Path) -> picture_quality.Network:
  """Opens a network: the Inception-v3 of FID, or any that was trained here.

  Args:
    path: the weights of Inception as pytorch-fid and torch-fidelity publish
      them (.pth, or their tensors in .npz or .safetensors), which are known by
      their names; else the workdir of a run or a released checkpoint of a
      classifier or a CLIP.

  Raises:
    ConfigError: there is none, it is not understood, or gives no features.
  """
  try:
    if path.is_file():
      names = released.tensors(path)
      if released.holds(released.inception, names):
        return of_inception(released.read(path))
    return of_trained(trained.load(path))
  except (ConfigError, released.ReleasedError, OSError) as error:
    raise ConfigError(f'--network={path}: {error}') from error


def of_inception(found: released.Released) -> picture_quality.Network:
  """Returns the network that FID is measured with; see `models.inception`.

  Features are the 2,048 before its classifier. Probabilities are of its logits
  without their bias, as in the original Inception score. Pictures, which are to
  be of one size, are scaled to 299 x 299 as the original graph does: bilinearly
  without antialiasing, corners as in TensorFlow 1. torch-fidelity does the
  same; pytorch-fid scales by half pixels, which gives slightly other distances.
  Grey pictures are taken as coloured ones.

  Args:
    found: its weights.
  """
  model = inception.InceptionV3(found.num_classes)
  mesh = mesh_lib.make(mesh_lib.Settings())
  variables = {
    collection: traverse_util.unflatten_dict(arrays, sep='/')
    for collection, arrays in (
      ('params', found.params),
      ('batch_stats', found.statistics),
    )
  }
  variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

  def look(variables, images):
    _, out = model.apply(variables, inception.prepare(images))
    return out['pooled'], jax.nn.softmax(out['logits_without_bias'])

  def prepare(image):
    return np.broadcast_to(image, (*image.shape[:2], 3))

  return picture_quality.Network(
    found.model['name'], _on_pictures(look, variables, mesh, prepare)
  )


def of_trained(model: trained.Trained) -> picture_quality.Network:
  """Returns a model as a network of features, and of classes if it has them.

  Features are those of images for a model of images and texts, and otherwise
  what its head sees, 'pooled'.

  Raises:
    ConfigError: it gives no features of images.
  """
  task = model.task
  if hasattr(task, 'encode_image'):

    def features(variables, image):
      return task.encode_image(variables, image)[0]
  elif hasattr(task, 'intermediates'):

    def features(variables, image):
      found = task.intermediates(variables, image)
      return few_shot.feature_of(found, 'pooled')
  else:
    raise ConfigError(
      f'A {model.config.model.name} trained for {model.config.task.name} gives '
      'no features of images. Give a classifier or a CLIP.'
    )
  predict = getattr(task, 'predict', None)
  transform = records.open_preprocess(model.config, 'test')

  def look(variables, images):
    rows = features(variables, images)
    return rows, predict(variables, images) if predict else None

  def prepare(image):
    prepared = transform({'image': image}, None)['image']
    prepared = inputs.with_channels(prepared, task.image_shape)
    return prepared.astype(np.float32)

  return picture_quality.Network(
    f'{model.config.model.name}_{model.config.task.name}',
    _on_pictures(look, model.variables, model.mesh, prepare),
  )


def _on_pictures(
  look: Look,
  variables: Any,
  mesh: Mesh,
  prepare: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray | None]]:
  """Returns a function of pictures, uint8, that gives a row for each.

  Args:
    look: at a batch.
    variables: its first argument, on the mesh.
    mesh: that the batch is split over.
    prepare: returns a picture as `look` wants it; all are of one shape.
  """
  compiled = jax.jit(look)
  shards = mesh_lib.batch_shards(mesh)

  def apply(images):
    size = min(_BATCH, len(images))
    found = mesh_lib.in_batches(
      functools.partial(compiled, variables),
      images,
      size + -size % shards,
      mesh,
      lambda some: np.stack([prepare(x) for x in some]),
    )
    return jax.tree.map(
      lambda *rows: np.concatenate(rows, dtype=np.float32), *found
    )

  return apply
