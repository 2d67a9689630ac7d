"""Data sets prepared by TensorFlow Datasets, read without TensorFlow.

TensorFlow Datasets stores a data set as ArrayRecord files if asked to, and
then neither preparing nor reading it needs TensorFlow
(https://www.tensorflow.org/datasets/data_source).
"""

import difflib
import functools
import os
from collections.abc import Callable
from typing import Any


class UnknownDatasetError(ValueError):
  """TensorFlow Datasets does not know the name on this machine."""


class TfdsSource:
  """One split of a TensorFlow Datasets data set, its images left encoded.

  Attributes:
    class_names: Names of the classes of the feature 'label'.
    prefix: What names are made of: 'train' gives 'train/0', 'train/1', ...
  """

  def __init__(self, directory: str, split: str):
    """Opens a split.

    Args:
      directory: Folder of one prepared version, with dataset_info.json.
      split: Name of a whole split.

    Raises:
      NotImplementedError: If the files are of a format only TensorFlow reads.
    """
    import tensorflow_datasets  # Optional, and slow to import.

    # From the folder, as a worker may not know the code that prepared it.
    builder = tensorflow_datasets.builder_from_directory(directory)
    self._records = builder.as_data_source(
      split=split,
      decoders={'image': tensorflow_datasets.decode.SkipDecoding()},
    )
    self.class_names = tuple(builder.info.features['label'].names)
    self.prefix = split

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._records[index]
    return {'image': record['image'], 'label': int(record['label'])}

  @functools.cached_property
  def labels(self) -> list[int]:
    """The label of each record; every record is read for it, once."""
    return [int(record['label']) for record in self._records]

  def name(self, index: int) -> str:
    return f'{self.prefix}/{index}'


def tfds(name: str) -> dict[str, Callable[[], Any]]:
  """Returns how to open each split of a TensorFlow Datasets data set.

  Args:
    name: Name, with configuration and version if need be, as in
      'imagenet2012:5.1.0'. It is looked for in the folder that the environment
      variable TFDS_DATA_DIR names, else in ~/tensorflow_datasets.

  Raises:
    ImportError: If tensorflow_datasets is not installed.
    UnknownDatasetError: If no data set has this name.
    ValueError: If the data set lacks an image or a label.
    FileNotFoundError: If it has not been prepared on this machine.
  """
  builder, prepare = find(name)
  features = builder.info.features
  if not {'image', 'label'} <= set(features):
    raise ValueError(
      f"'tfds:{name}' has the features {', '.join(features)}; 'image' and "
      "'label' are needed"
    )
  return openers(builder, TfdsSource, name, prepare)


def find(name: str) -> tuple[Any, str]:
  """Returns the builder of a prepared data set, and how to prepare it.

  Raises:
    ImportError, UnknownDatasetError, FileNotFoundError: See `tfds`.
  """
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ImportError(
      f"the source 'tfds:{name}' needs TensorFlow Datasets: run "
      "pip install -e '.[tfds]' in the folder of vit_jax"
    ) from error
  data_dir = os.environ.get('TFDS_DATA_DIR')
  prepare = (
    'prepare it with: python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', file_format='array_record')"
    '.download_and_prepare()"'
  )
  try:
    builder = tensorflow_datasets.builder(name, data_dir=data_dir)
  except tensorflow_datasets.core.DatasetNotFoundError as error:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(name.split(':')[0], known, n=1)
    hint = f'did you mean {near[0]!r}?' if near else 'check its name'
    raise UnknownDatasetError(
      f"TensorFlow Datasets does not know 'tfds:{name}'; {hint}"
    ) from error
  if not builder.info.splits:
    raise FileNotFoundError(
      f"'tfds:{name}' is not in {builder.data_dir}; {prepare}"
    )
  return builder, prepare


def openers(
  builder: Any, source: Callable[[str, str], Any], name: str, prepare: str
) -> dict[str, Callable[[], Any]]:
  """Returns how to open each split.

  Args:
    builder: Of a prepared data set.
    source: Opens a split of a folder.
    name: Of the data set, for messages.
    prepare: What to do if its files are of another format.
  """

  def open_split(split: str) -> Any:
    try:
      return source(str(builder.data_dir), split)
    except NotImplementedError as error:
      raise ValueError(
        f"'tfds:{name}' is stored in files that only TensorFlow reads; "
        f'{prepare}'
      ) from error

  return {
    split: functools.partial(open_split, split) for split in builder.info.splits
  }
