"""Images with captions to files of codes and captions, shard by shard."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax.config import ConfigError
from vit_jax.data import batching, code_files
from vit_jax.tasks import text_to_image
from vit_jax.training import frozen as frozen_lib
from vit_jax.training import image_codes, records, texts
from vit_jax.training import mesh as mesh_lib

# Each takes three open files, of which a process may often have 1,024.
_MAX_SHARDS = 300

# Is told the number of a shard, and how many records it has and lacks.
Say = Callable[[int, int, int], None]
# A record's 'name', 'captions' and 'fields', and its images [crops, ...].
Prepared = tuple[dict[str, Any], np.ndarray]


def _open_images(config: Any, name: str) -> Any:
  """Opens the source of a split; ConfigError for codes and endless ones."""
  section = config.data[name]
  if image_codes.about(config, name):
    raise ConfigError(
      f'config.data.{name}.source {section.source!r} has codes already: name '
      'the source of the images.'
    )
  source = records.open_split(config, name)
  if len(source) > texts.COUNTABLE:
    raise ConfigError(
      f'config.data.{name}.source has {len(source):,} records, which has no '
      f"end: name a part, such as --config.data.{name}.split='"
      f"{section.split}[:100000]'."
    )
  return source


class Encoder:
  """Writes the codes of a split of images with captions.

  Attributes:
    about: what all shards have in common.
    left_out: how many records were left out and why, '' if none.
  """

  def __init__(
    self,
    config: Any,
    name: str,
    frozen: frozen_lib.Frozen,
    mesh: Mesh,
    *,
    crops: int = 1,
    shard_records: int | None = None,
    batch_size: int = 64,
  ):
    """Opens a split.

    Args:
      config: complete, of task text_to_image.
      name: of the split, 'train' or 'test'.
      frozen: the discrete VAE.
      mesh: of this process's devices.
      crops: how often each image is prepared, with other random numbers.
      shard_records: see `code_files.About`; None chooses.
      batch_size: images at a time, rounded up to what the mesh can share.

    Raises:
      ConfigError: the data is not there, has no images or not such as the
        discrete VAE reads, crops would all be the same, or shards too many.
    """
    section = config.data[name]
    self._source = _open_images(config, name)
    self.left_out = texts.left_out(self._source)
    self._prepare = records.open_preprocess(config, name)
    if crops > 1 and self._prepare.deterministic:
      raise ConfigError(
        f'{crops} crops would be all the same: config.data.{name}.preprocess '
        f'{section.preprocess!r} is not random.'
      )
    vae = frozen.task
    try:
      text_to_image.check_makes_codes(vae, config.task.image_codes)
    except ValueError as error:
      raise ConfigError(f'config.task: {error}') from error
    records.check_shape(
      self._source, self._prepare, vae.image_shape, f'config.data.{name}'
    )
    image = jax.ShapeDtypeStruct((1, *vae.image_shape), np.float32)
    grid = jax.eval_shape(vae.encode, frozen.variables, image).shape[1:]
    aspect = config.data.text.aspect
    self.about = code_files.About(
      vae=frozen.identity,
      vocabulary=vae.model.vocabulary_size,
      grid=tuple(grid),
      image_shape=tuple(vae.image_shape),
      source=section.source,
      split=section.split,
      preprocess=section.preprocess,
      crops=crops,
      seed=config.seed,
      aspect=None if math.isinf(aspect) else aspect,
      records=len(self._source),
      shard_records=shard_records
      or code_files.shard_records(len(self._source)),
      captions=texts.caption_rules(config.data.text),
    )
    if self.about.shards > _MAX_SHARDS:
      raise ConfigError(
        f'--shard={shard_records} makes {self.about.shards:,} shards, and each '
        'takes three open files when it is read: use '
        f'{-(-self.about.records // _MAX_SHARDS):,} or more.'
      )
    self._max_broken = config.data.max_broken
    self._randomness = batching.Randomness(config.seed)
    everywhere = NamedSharding(mesh, PartitionSpec())
    self._variables = jax.device_put(frozen.variables, everywhere)
    self._encode = jax.jit(vae.encode)
    self._mesh = mesh
    shards = mesh_lib.batch_shards(mesh)
    self._images = -(-batch_size // shards) * shards

  def write(self, folder: pathlib.Path, shards: Sequence[int], say: Say) -> int:
    """Writes those shards that are not there yet.

    Args:
      folder: of the split.
      shards: numbers of those to care for.
      say: is told of each shard.

    Returns:
      How many of all shards are still missing, which others write; 0 makes
      the split readable.

    Raises:
      ConfigError: the folder has other codes, or too many records are broken.
    """
    try:
      missing = [
        number
        for number in shards
        if not code_files.is_whole(folder, number, self.about)
      ]
    except ValueError as error:
      raise ConfigError(f'{error}.') from error
    for number in missing:
      broken: dict[str, str] = {}
      rows, codes = self._shard(number, broken)
      code_files.write_shard(folder, number, self.about, codes, rows, broken)
      say(number, len(rows), len(broken))
    try:
      return code_files.finish(folder, self.about)
    except ValueError as error:
      raise ConfigError(f'{error}.') from error

  def _check_broken(
    self, number: int, count: int, broken: dict[str, str]
  ) -> None:
    """Raises ConfigError if more records are broken than may be."""
    if len(broken) > self._max_broken * count:
      name, reason = next(iter(broken.items()))
      raise ConfigError(
        f'At least {len(broken):,} of the {count:,} records of shard {number} '
        'cannot be read, more than config.data.max_broken='
        f'{self._max_broken} allows. {name}: {reason}'
      )

  def _shard(
    self, number: int, broken: dict[str, str]
  ) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Returns rows and codes [records, crops, codes]; notes what is broken."""
    about = self.about
    size, first = about.shard_records, number * about.shard_records
    indices = range(first, min(first + size, about.records))
    rows = []
    # In place and as they are stored: those of a shard can be many gigabytes.
    codes = np.empty(
      (len(indices), about.crops, math.prod(about.grid)), about.dtype
    )
    for prepared in self._prepared(number, indices, broken):
      images = np.concatenate([images for _, images in prepared])
      found = self._codes(images).reshape(-1, *codes.shape[1:])
      codes[len(rows) : len(rows) + len(prepared)] = found
      rows += [row for row, _ in prepared]
    return rows, codes[: len(rows)]

  def _codes(self, images: np.ndarray) -> np.ndarray:
    """Returns the codes of some images, [images, rows, columns]."""
    found = mesh_lib.in_batches(
      functools.partial(self._encode, self._variables),
      images,
      self._images,
      self._mesh,
    )
    return np.concatenate(list(found))

  def _prepared(
    self, number: int, indices: range, broken: dict[str, str]
  ) -> Iterator[list[Prepared]]:
    """Yields some records at a time, the next ones on their way.

    Raises:
      ConfigError: too many of the shard are broken, as soon as that is known.
    """
    chunk = max(1, self._images // self.about.crops)
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      coming = None
      for start in range(0, len(indices) + chunk, chunk):
        before = coming
        some = indices[start : start + chunk]
        coming = [(index, pool.submit(self._read, index)) for index in some]
        if before:
          found = self._readable(before, broken)
          self._check_broken(number, len(indices), broken)
          if found:
            yield found

  def _readable(
    self,
    coming: Sequence[tuple[int, futures.Future]],
    broken: dict[str, str],
  ) -> list[Prepared]:
    """Waits for records; notes those that are broken."""
    found = []
    for index, future in coming:
      try:
        found.append(future.result())
      except batching.BrokenRecordError as error:
        broken[self._source.name(index)] = str(error)
    return found

  def _read(self, index: int) -> Prepared:
    crops = self.about.crops
    images = [
      batching.read_example(
        self._source,
        self._prepare,
        index,
        self._randomness.of_example(index * crops + crop),
      )['image']
      for crop in range(crops)
    ]
    row = dict(
      name=self._source.name(index),
      captions=self._source.captions(index),
      fields=dict(self._source.fields(index)),
    )
    return row, np.stack(images)
