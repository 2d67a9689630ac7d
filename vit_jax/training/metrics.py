"""The figures of a run: one JSON object a row, and TensorBoard events."""

import json
import math
import pathlib
from collections.abc import Mapping

from tensorboardX import SummaryWriter

FILE = 'metrics.jsonl'


def read(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the rows that a run has written, without a torn last one."""
  path = pathlib.Path(workdir) / FILE
  rows = []
  if path.exists():
    for line in path.read_text().splitlines():
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        continue  # Cut off when the run was killed; it will be done again.
  return rows


class MetricsWriter:
  """Writes rows; each has `step` and `group/name` keys.

  Args:
    workdir: of the run.
    start: step that the run goes on from; later rows are dropped, as those
      steps are done again.
  """

  def __init__(self, workdir: pathlib.Path, start: int):
    kept = [row for row in read(workdir) if row['step'] <= start]
    temporary = workdir / f'{FILE}.tmp'
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    temporary.replace(workdir / FILE)
    self._file = (workdir / FILE).open('a')
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
    self._file.write(json.dumps({'step': step, **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Writes what is left."""
    self._file.close()
    self._board.close()
