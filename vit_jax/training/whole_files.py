"""Small files that are there whole or not at all, on disk or Cloud Storage."""

from etils import epath


def on_cloud_storage(path: epath.Path) -> bool:
  """Whether it is a gs:// path: no appending, no renaming, no locks."""
  return '://' in str(path)


def write(path: epath.Path, content: str | bytes) -> None:
  """Writes a file, whole or not at all."""
  if isinstance(content, str):
    content = content.encode()
  if on_cloud_storage(path):  # Objects appear when they are complete.
    path.write_bytes(content)
    return
  temporary = path.parent / f'{path.name}.tmp'
  temporary.write_bytes(content)
  temporary.replace(path)
