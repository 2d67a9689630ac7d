"""Small files that are there whole or not at all, on disk or Cloud Storage."""

from etils import epath


def on_cloud_storage(path: epath.Path) -> bool:
  """Whether it is a gs:// path: no appending, no renaming, no locks."""
  return '://' in str(path)


def write(path: epath.Path, text: str) -> None:
  """Writes a file, whole or not at all."""
  if on_cloud_storage(path):  # Objects appear when they are complete.
    path.write_text(text)
    return
  temporary = path.parent / f'{path.name}.tmp'
  temporary.write_text(text)
  temporary.replace(path)
