"""What a person sees while a run goes on, and the clock behind it."""

import dataclasses
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def spelled(seconds: float) -> str:
  """Returns a length of time as people write it: '1h02m', '3m20s', '8s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d{hours:02d}h'
  if hours:
    return f'{hours}h{minutes:02d}m'
  return f'{minutes}m{seconds:02d}s' if minutes else f'{seconds}s'


@dataclasses.dataclass
class Clock:
  """Time of training alone, and what of it was spent waiting for data.

  Compilation, evaluation and saving are not training: `pause` before them and
  `resume` after.
  """

  trained: float = 0.0
  waited: float = 0.0
  steps: int = 0
  _since: float | None = None

  def resume(self) -> None:
    """Starts counting."""
    self._since = time.perf_counter()

  def pause(self) -> None:
    """Stops counting."""
    if self._since is not None:
      self.trained += time.perf_counter() - self._since
      self._since = None

  def interval(self) -> tuple[int, float, float]:
    """Returns steps, seconds and seconds waited since the last call."""
    running = self._since is not None
    self.pause()
    result = self.steps, self.trained, self.waited
    self.steps, self.trained, self.waited = 0, 0.0, 0.0
    if running:
      self.resume()
    return result


class ProgressBar:
  """A bar on a terminal; a line at every log elsewhere.

  Args:
    console: to write on.
    start: first step.
    total: last step.
  """

  def __init__(self, console: Console, start: int, total: int):
    self._console = console
    self._start = start
    self._total = total
    self._width = len(f'{total:,}')
    self._bar = None
    if console.is_terminal:
      self._bar = Progress(
        BarColumn(bar_width=None),
        TextColumn('{task.completed:,}/{task.total:,}'),
        TextColumn('{task.fields[figures]}'),
        console=console,
        expand=True,
      )
      self._bar.start()
      self._id = self._bar.add_task(
        '', total=total, completed=start, figures='compiling'
      )

  def step(self, step: int) -> None:
    """Says that a step is done."""
    if self._bar:
      compiled = {'figures': ''} if step == self._start + 1 else {}
      self._bar.update(self._id, completed=step, **compiled)

  def log(self, step: int, figures: str) -> None:
    """Shows the figures of the steps up to `step`."""
    if self._bar:
      self._bar.update(self._id, figures=figures)
    else:
      self._console.print(
        f'{step:>{self._width},}/{self._total:,}  {figures}', highlight=False
      )

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    self._console.print(text, highlight=False, markup=False)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._bar:
      self._bar.stop()
