"""Image files in folders: DIR/<split>/<class>/* or DIR/<class>/*."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image


class FolderSource:
  """Image files below one folder per class.

  Records are ordered by a hash of their path relative to the root, so that a
  slice of the source is a fair random subset, the same on every machine.

  Attributes:
    root: Folder that holds the class folders.
    class_names: Names of the class folders.
    labels: int32 [examples].
  """

  def __init__(self, root: pathlib.Path, class_names: Sequence[str]):
    """Finds the files.

    Args:
      root: Folder that holds the class folders.
      class_names: The classes; `root` may lack some of them.

    Raises:
      ValueError: If `root` has a class beyond `class_names`, or no image.
    """
    self.root = str(root)
    self.class_names = tuple(class_names)
    unknown = sorted(set(_folders(root)) - set(class_names))
    if unknown:
      raise ValueError(
        f'{root} has classes that the train split lacks: '
        f'{", ".join(unknown[:20])}{", ..." if len(unknown) > 20 else ""}; '
        'rename or remove these folders'
      )
    found = []
    for label, class_name in enumerate(class_names):
      for path in image_files(root / class_name):
        relative = os.fsencode(f'{class_name}/{path}')
        found.append((hashlib.sha256(relative).digest(), relative, label))
    if not found:
      raise ValueError(
        f'no image in the class folders of {root} (a file is an image if '
        'Pillow reads its extension, such as .jpg or .png)'
      )
    found.sort()
    # One block of bytes rather than millions of strings: cheap to send to
    # worker processes, and small in each.
    self._paths = b''.join(relative for _, relative, _ in found)
    self._ends = np.cumsum([0] + [len(relative) for _, relative, _ in found])
    self.labels = np.array([label for _, _, label in found], np.int32)

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, Any]:
    with open(self.name(index), 'rb') as file:
      return {'image': file.read(), 'label': int(self.labels[index])}

  def name(self, index: int) -> str:
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    path = self._paths[self._ends[index] : self._ends[index + 1]]
    return os.path.join(self.root, os.fsdecode(path))


def folder(directory: str) -> dict[str, Callable[[], FolderSource]]:
  """Returns how to open each split of a folder.

  Args:
    directory: If it has a folder 'train', each of its folders is a split and
      holds class folders, and the classes are those of 'train'. Otherwise its
      folders are the classes, and the one split is called 'all'. Files may
      lie deeper below a class folder. Hidden files and folders are ignored.

  Raises:
    FileNotFoundError: If there is no such folder, or no class in it.
  """
  root = pathlib.Path(directory).expanduser()
  if not root.is_dir():
    raise FileNotFoundError(f'no folder {root}')
  names = _folders(root)
  is_split = 'train' in names
  class_names = tuple(_folders(root / 'train' if is_split else root))
  if not class_names:
    raise FileNotFoundError(
      f'no class folder in {root / "train" if is_split else root}: expected '
      f'{root}/<split>/<class>/* or {root}/<class>/*'
    )
  if not is_split:
    return {'all': functools.partial(FolderSource, root, class_names)}
  return {
    name: functools.partial(FolderSource, root / name, class_names)
    for name in names
  }


def _folders(root: pathlib.Path) -> list[str]:
  """Returns the names of the folders in `root`, sorted, hidden ones not."""
  with os.scandir(root) as entries:
    return sorted(
      entry.name
      for entry in entries
      if entry.is_dir() and not entry.name.startswith('.')
    )


def image_files(root: pathlib.Path) -> Iterator[str]:
  """Yields the image files below `root`, relative to it, with '/' in names."""
  if not root.is_dir():
    return
  extensions = _extensions()
  for folder_path, folders, files in os.walk(root):
    folders[:] = [name for name in folders if not name.startswith('.')]
    below = pathlib.Path(folder_path).relative_to(root)
    for name in files:
      extension = os.path.splitext(name)[1].lower()
      if extension in extensions and not name.startswith('.'):
        yield (below / name).as_posix()


@functools.cache
def _extensions() -> frozenset[str]:
  """Returns the file name extensions that Pillow can open."""
  registered = Image.registered_extensions()
  return frozenset(
    extension for extension, name in registered.items() if name in Image.OPEN
  )
