"""Images with captions prepared by TensorFlow Datasets: coco_captions, ..."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.data import caption_files, tfds_source


class TfdsCaptions:
  """One split of a data set with captions, its images left encoded."""

  def __init__(self, directory: str, split: str):
    """Opens a split; see `tfds_source.TfdsSource`."""
    import tensorflow_datasets  # Optional, and slow to import.

    builder = tensorflow_datasets.builder_from_directory(directory)
    self._records = builder.as_data_source(
      split=split,
      decoders={'image': tensorflow_datasets.decode.SkipDecoding()},
    )
    self._prefix = split

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {'image': record['image'], 'texts': _captions(record)}

  def captions(self, index: int) -> tuple[str, ...]:
    return _captions(self._records[index])

  def fields(self, index: int) -> Mapping[str, Any]:
    """Returns the features that are a text or a number."""
    found = {
      name: _text(value)
      for name, value in self._records[index].items()
      if name != 'image'
    }
    return {
      name: value
      for name, value in found.items()
      if isinstance(value, str | int | float)
    }

  def name(self, index: int) -> str:
    return f'{self._prefix}/{index}'


def tfds_captions(name: str) -> dict[str, Callable[[], TfdsCaptions]]:
  """Returns how to open each split of a data set of TensorFlow Datasets.

  Args:
    name: As for `tfds_source.tfds`. The captions are the feature 'captions' or
      'caption': a text, texts, or a sequence with the key 'text'.

  Raises:
    ValueError: If the data set lacks images or captions; the others are those
      of `tfds_source.tfds`.
  """
  builder, prepare = tfds_source.find(name)
  features = set(builder.info.features)
  if 'image' not in features or not features & {'caption', 'captions'}:
    raise ValueError(
      f"'tfds_captions:{name}' has the features {', '.join(sorted(features))}; "
      "'image' and 'captions' or 'caption' are needed"
    )
  return tfds_source.openers(builder, TfdsCaptions, name, prepare)


def _captions(record: Mapping[str, Any]) -> tuple[str, ...]:
  found = record.get('captions', record.get('caption'))
  if isinstance(found, Mapping):
    found = found['text']
  if isinstance(found, (bytes, str)):
    found = [found]
  texts = [_text(x['text'] if isinstance(x, Mapping) else x) for x in found]
  return caption_files.captions_of({'captions': texts})


def _text(value: Any) -> Any:
  """Returns bytes as text, and numbers of NumPy as Python's."""
  if isinstance(value, bytes):
    return value.decode('utf-8', errors='replace')
  return value.item() if isinstance(value, np.generic) else value
