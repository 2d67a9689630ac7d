"""The figures of a run: one JSON object a row, and TensorBoard events."""

import json
import math
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX import SummaryWriter

from vit_jax.training import whole_files

FILE = 'metrics.jsonl'


def read(workdir: epath.Path) -> list[dict[str, float]]:
  """Returns the rows that a run has written, without a torn last one."""
  path = epath.Path(workdir) / FILE
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        continue  # Cut off when the run was killed; it will be done again.
  return rows


# Cloud Storage cannot append: all rows are written anew, but not for each one.
_SECONDS_BETWEEN_UPLOADS = 60


class MetricsWriter:
  """Writes rows; each has `step` and `group/name` keys.

  Rows are safe once `flush` has returned.

  Args:
    workdir: of the run.
    start: step that the run goes on from; later rows are dropped, as those
      steps are done again.
  """

  def __init__(self, workdir: epath.Path, start: int):
    kept = [row for row in read(workdir) if row['step'] <= start]
    self._path = workdir / FILE
    self._text = ''.join(json.dumps(row) + '\n' for row in kept)
    self._file = None
    self._upload()
    if not whole_files.on_cloud_storage(workdir):
      self._file = self._path.open('a')
    self._board = SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=start + 1, flush_secs=20
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one row."""
    # NaN is not JSON, and there is nothing to draw.
    values = {
      name: float(value)
      for name, value in values.items()
      if math.isfinite(value)
    }
    row = json.dumps({'step': step, **values}) + '\n'
    if self._file:
      self._file.write(row)
      self._file.flush()
    else:
      self._text += row
      if time.monotonic() - self._uploaded > _SECONDS_BETWEEN_UPLOADS:
        self.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def flush(self) -> None:
    """Writes all rows so far, so that no end of this process can lose them."""
    if not self._file:
      self._upload()

  def _upload(self) -> None:
    whole_files.write(self._path, self._text)
    self._uploaded = time.monotonic()

  def close(self) -> None:
    """Writes what is left."""
    self.flush()
    if self._file:
      self._file.close()
    self._board.close()
