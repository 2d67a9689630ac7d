"""The figures of a run: one JSON object a row, and TensorBoard events."""

import io
import json
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
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
    project: at Weights & Biases, to which rows go as well; '' for none.
    config: of the run, shown there.
  """

  def __init__(
    self,
    workdir: epath.Path,
    start: int,
    project: str = '',
    config: Mapping[str, Any] | None = None,
  ):
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
    self._online = None
    if project:
      import wandb  # Nobody who does not ask for it needs it.

      self._wandb = wandb
      # The same run again where this one goes on from a checkpoint.
      name = workdir / 'wandb_id'
      if start == 0 or not name.exists():
        name.write_text(secrets.token_hex(8))
      self._online = wandb.init(
        project=project,
        id=name.read_text(),
        name=workdir.name,
        config=dict(config or {}),
        resume='allow',
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
    if self._online:
      self._online.log(values, step=step)

  def write_picture(self, step: int, name: str, png: bytes) -> None:
    """Shows a picture where figures are shown; there is no row of it."""
    image = Image.open(io.BytesIO(png)).convert('RGB')
    self._board.add_image(name, np.asarray(image), step, dataformats='HWC')
    if self._online:
      self._online.log({name: self._wandb.Image(image)}, step=step)

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
    if self._online:
      self._online.finish()
