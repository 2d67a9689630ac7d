"""The training loop: the only one, whatever is learned."""

import contextlib
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from vit_jax.evaluation import mean_metrics
from vit_jax.training import (
  evaluators,
  init_from,
  processes,
  progress,
  report,
  summary,
  watch,
)
from vit_jax.training import flops as flops_lib
from vit_jax.training import inputs as inputs_lib
from vit_jax.training import metrics as metrics_lib
from vit_jax.training import workdir as workdir_lib
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.run import Run

# Steps that are sent to the devices before one is waited for.
_AHEAD = 2


class TrainingError(RuntimeError):
  """A run that cannot go on, and would not if it were started again."""


class Preempted(Exception):
  """The run was asked to stop; it saved its state and can be resumed."""


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
  """Turns SIGTERM and Ctrl-C into a question: was the run asked to stop?

  A second Ctrl-C interrupts at once.
  """
  received = []

  def note(number, frame):
    if received and number == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(number)

  numbers = (signal.SIGTERM, signal.SIGINT)
  before = {number: signal.signal(number, note) for number in numbers}
  try:
    yield lambda: bool(received)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
  leaves = [
    jnp.isfinite(leaf).all()
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return jnp.stack(leaves).all()


class _Loop:
  """The state of `train`, so that its parts can be functions of a screen."""

  def __init__(
    self,
    run: Run,
    workdir: pathlib.Path,
    console: Console,
    profile: str | None,
  ):
    self.run = run
    self.profile = watch.Profile(profile, workdir)
    self.compilations = watch.compilations()
    self.config = run.config
    self.console = console
    self.checkpoints = Checkpoints(
      workdir / 'checkpoints',
      keep=run.config.checkpoint.keep,
      best=run.config.checkpoint.best,
    )
    self.every = {
      'log': run.steps(run.config.log_every),
      'eval': run.steps(run.config.eval.every),
      'save': run.steps(run.config.checkpoint.every),
    }
    self.every['keep'] = report.kept_every(self.every['eval'], run.total_steps)
    self.workdir = workdir
    self.clock = progress.Clock()
    self.flops = flops_lib.training_flops(run.task)
    self.summed = mean_metrics.make_summed(run.task)
    self.evaluators = evaluators.make(run, self.say_broken)
    self.writer = None  # Only one process has one.
    self.pending = []  # (step, metrics on the devices) not yet looked at.
    self.tested = (0, {})  # Step and result of the newest evaluation.
    self.broken = set()  # Names of records that could not be read.
    self.warnings = set()  # Of the task, said already.

  def say_broken(self, name: str, reason: str) -> None:
    """Says once that a record is skipped."""
    if name not in self.broken:
      self.broken.add(name)
      self.bar.say(f'skipped, cannot be read: {name} ({reason})')

  def say_warning(self, step: int, means: Mapping[str, float]) -> None:
    """Says once what the task finds wrong with its training."""
    warning = getattr(self.run.task, 'warning', lambda means: '')(means)
    if warning and warning not in self.warnings:
      self.warnings.add(warning)
      self.bar.say(f'step {step:,}  {warning}')

  def test_batches(self) -> Iterator[inputs_lib.Batch]:
    """Yields each test example once, on the devices."""
    inputs = self.run.inputs
    return inputs_lib.test_batches(
      self.config,
      inputs.source['test'],
      inputs.preprocess['test'],
      self.run.mesh,
      self.say_broken,
    )

  def watched(
    self, batches: Iterable, step: int, needed: bool = False
  ) -> Iterator[Any]:
    """Passes batches on until the run is asked to stop, unless needed."""
    for batch in batches:
      if self.stop() and not needed:
        raise Preempted(step)
      yield batch

  def evaluate(self, state: Any, step: int) -> None:
    """Measures the task's metrics on the test data, and writes them."""
    # At the end little is left to do, and `best` needs the score of what is
    # saved: that is done, not left undone.
    best = self.config.checkpoint.best and step % self.every['save'] == 0
    watched = functools.partial(
      self.watched, step=step, needed=best or step == self.run.total_steps
    )
    means = mean_metrics.mean_metrics(
      self.summed, state.evaluated, watched(self.test_batches())
    )
    values = {f'test/{name}': value for name, value in means.items()}
    self.say_figures(step, values)
    for evaluator in self.evaluators:
      scores = evaluator(state.evaluated, watched)
      self.say_figures(step, scores)
      values |= scores
    self.tested = (step, values)
    self.write(step, values)

  def draw(self, state: Any, step: int) -> None:
    """Draws what the task shows: all at the end, before it the sheets."""
    task, last = self.run.task, step == self.run.total_steps
    if not last and not report.sheets(task):
      return
    keeps = last or step % self.every['keep'] == 0
    with contextlib.closing(self.test_batches()) as batches:
      report.write_examples(
        self.workdir,
        task,
        state.evaluated,
        self.watched(batches, step, needed=last),
        step=step if keeps else None,
        only_sheets=not last,
      )
    for name in report.sheets(task):
      path = report.kept(self.workdir, name, step)
      if self.writer and path.exists():
        self.writer.write_picture(step, f'test/{name}', path.read_bytes())

  def say_figures(self, step: int, values: Mapping[str, float]) -> None:
    """Prints what was measured, but not how far it spreads."""
    shown = '  '.join(
      f'{name.partition("/")[2]} '
      + (f'{value:,}' if isinstance(value, int) else f'{value:.4f}')
      for name, value in values.items()
      if not name.endswith(('_std', '_l2'))
    )
    self.bar.say(f'step {step:,}  {shown}')

  def make_up(self, state: Any, start: int) -> None:
    """Evaluates and draws where the run ended in the midst of that."""
    tested = any(
      row['step'] == start and name.startswith('test/')
      for row in metrics_lib.read(self.workdir)
      for name in row
    )
    drawn = start % self.every['keep'] or all(
      report.kept(self.workdir, name, start).exists()
      for name in report.sheets(self.run.task)
    )
    tested, drawn = multihost_utils.broadcast_one_to_all(
      np.array([tested, bool(drawn)])
    )
    if start % self.every['eval'] == 0:
      if not tested:
        self.evaluate(state, start)
      if not drawn and start < self.run.total_steps:
        self.draw(state, start)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one row of metrics, in the process that writes."""
    if self.writer:
      self.writer.write(step, values)

  def save(self, state: Any, step: int, wait: bool = False) -> None:
    """Saves a checkpoint, of finite numbers only."""
    self.look(self.pending)
    if not _all_finite(state):
      raise TrainingError(self.not_finite(step, 'a parameter or moment'))
    meta = {
      'config': self.config.to_dict(),
      **self.run.inputs.known.meta(),
    }
    if frozen := getattr(self.run.task, 'frozen', None):
      meta['frozen'] = frozen.meta
    tested_at, metrics = self.tested
    metrics = metrics if tested_at == step else None
    if self.writer:  # Rows before a checkpoint are not done again.
      self.writer.flush()
    self.checkpoints.save(step, state, meta, metrics, wait=wait)

  def look(self, pending: list) -> list[dict[str, float]]:
    """Fetches metrics from the devices; raises if they are not finite."""
    rows = jax.device_get([metrics for _, metrics in pending])
    for (step, _), row in zip(pending, rows):
      for name in ('loss', 'gradient_norm'):
        if not np.isfinite(row[name]):
          what = f'{name.replace("_", " ")} ({row[name]})'
          raise TrainingError(self.not_finite(step, f'the {what}'))
    return rows

  def not_finite(self, step: int, what: str) -> str:
    """Says what happened, what is left and what usually causes it."""
    optimizer = self.config.optimizer
    rate = optimizer.learning_rate * float(self.run.schedule(step - 1))
    causes = [
      f'a learning rate that is too high ({rate:.3g} at this step; peak '
      f'{optimizer.learning_rate:.3g})',
      'too short a warm-up (config.schedule.warmup)',
    ]
    if not optimizer.clip_norm:
      causes.append('no clipping (config.optimizer.clip_norm=1.0)')
    if 'bfloat16' in self.config.precision.to_dict().values():
      causes.append('bfloat16 (try config.precision.softmax=float32)')
    causes.append('broken examples: values outside the expected range')
    advice = 'There is no checkpoint yet: start anew with other settings.'
    if kept := self.checkpoints.steps():
      advice = (
        f'The checkpoint of step {kept[-1]:,} is intact. To go on from its '
        'parameters with other settings, start a new run with '
        f'--config.init={self.workdir}.'
      )
    return (
      f'At step {step:,} {what} is not finite. {advice}\nLikely causes:'
      + ''.join(f'\n  - {cause}' for cause in causes)
    )

  def log(self, step: int) -> None:
    """Writes and shows the figures of the steps since the last log."""
    rows = self.look(self.pending)
    count, seconds, waited = self.clock.interval()
    self.pending = []
    if not rows:
      return
    means = {
      name: float(np.mean([row[name] for row in rows])) for name in rows[0]
    }
    self.say_warning(step, means)
    values = {f'train/{name}': mean for name, mean in means.items()}
    rate = self.run.schedule(step - 1) * self.config.optimizer.learning_rate
    values['train/learning_rate'] = float(rate)
    figures = f'loss {values["train/loss"]:.4f}'
    if count:
      images = self.config.batch_size * count / seconds
      devices = self.run.mesh.devices
      values['speed/images_per_sec'] = images
      values['speed/images_per_sec_per_core'] = images / devices.size
      values['speed/data_wait'] = waited / seconds
      if peak := flops_lib.peak_flops(devices.flat[0]):
        values['speed/mfu'] = images / devices.size * self.flops / peak
      left = (self.run.total_steps - step) * seconds / count
      figures += (
        f'  {images:,.0f} img/s  wait {waited / seconds:.0%}'
        f'  ETA {progress.spelled(left)}'
      )
    values |= watch.memory(self.run.mesh.devices.flat)
    values['compile/count'] = self.compilations['count']
    values['compile/seconds'] = self.compilations['seconds']
    if self.broken:
      values['data/broken'] = len(self.broken)
    self.write(step, values)
    self.bar.log(step, figures)

  def steps(self, state: Any, start: int) -> Any:
    """Goes from `start` to the end; returns the final state."""
    total = self.run.total_steps
    with contextlib.closing(
      inputs_lib.train_batches(
        self.config, self.run.inputs, self.run.mesh, start, self.say_broken
      )
    ) as batches:
      for step in range(start + 1, total + 1):
        if len(self.pending) > _AHEAD:
          # Else the host would run away, and wait for data early, not late.
          jax.block_until_ready(self.pending[-_AHEAD])
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        self.profile.before(step)
        before = self.compilations['count']
        given, (state, metrics) = state, self.run.train_step(state, batch)
        if step > start + 1 and self.compilations['count'] > before:
          self.say_compiled(step, given, batch)
        self.profile.after(step, metrics)
        self.pending.append((step, metrics))
        self.bar.step(step)
        if step == start + 1:
          jax.block_until_ready(metrics)  # Compilation is not speed.
          self.clock.resume()
        else:
          self.clock.steps += 1
          self.clock.waited += waited
        try:
          self.after_step(state, step, step == total)
          if self.stop() and step < total:
            raise Preempted(step)
        except Preempted:
          self.save_now(state, step)
          raise
    return state

  def say_compiled(self, step: int, state: Any, batch: Any) -> None:
    """Says that a step was compiled again, which costs time, and why."""
    what = watch.difference(
      {'state': self.run.state, 'batch': self.run.batch},
      {'state': state, 'batch': batch},
    )
    self.bar.say(
      f'step {step:,} was compiled again: ' + ('; '.join(what) or 'no change')
    )

  def after_step(self, state: Any, step: int, last: bool) -> None:
    """Logs, evaluates and saves where it is time to."""
    if step % self.every['log'] == 0 or last:
      self.log(step)
    saves = step % self.every['save'] == 0 or last
    tests = step % self.every['eval'] == 0 or last
    if saves and self.config.checkpoint.best:
      tests = True
    if saves or tests:
      jax.block_until_ready(state)
      self.clock.pause()
      if tests:
        self.look(self.pending)
        self.evaluate(state, step)
      if saves:
        self.save(state, step)
      # After saving, so that nothing is lost where there is no time to draw.
      if step % self.every['eval'] == 0 and not last:
        self.draw(state, step)
      self.clock.resume()

  def save_now(self, state: Any, step: int) -> None:
    """Saves before a preemption, unless this step is saved already."""
    self.log(step)
    if step not in self.checkpoints.steps():
      self.save(state, step, wait=True)

  def restore(self) -> tuple[Any, int]:
    """Returns the state to go on from, or a new one, and its step."""
    if self.checkpoints.steps():
      _, meta, _ = self.checkpoints.load(('step',))
      workdir_lib.check_same_run(meta['config'], self.config, self.workdir)
      workdir_lib.check_same_data(meta, self.run.inputs.known, self.workdir)
    restored = self.checkpoints.restore(self.run.state)
    if restored is not None:
      state, _, start = restored
      return state, start
    state, origin = init_from.initial_state(self.run)
    if origin:
      if processes.first():
        origin.write(self.workdir / 'init.json')
      for line in origin.lines():
        self.console.print(line, highlight=False, markup=False)
    return state, 0

  def go(self) -> bool:
    """Trains to the end from wherever the run is; False if it was there."""
    with contextlib.ExitStack() as stack:
      stack.enter_context(workdir_lib.only_run_in(self.workdir))
      stack.enter_context(self.checkpoints)
      stack.enter_context(contextlib.closing(self.profile))
      stack.enter_context(jax.set_mesh(self.run.mesh))
      state, start = self.restore()
      finished = start >= self.run.total_steps
      reported = report.is_complete(self.workdir)
      if finished and multihost_utils.broadcast_one_to_all(reported):
        return False
      if processes.first():
        report.go_back(self.workdir, start)
        workdir_lib.write_config(self.workdir, self.config)
        self.writer = stack.enter_context(
          contextlib.closing(
            metrics_lib.MetricsWriter(
              self.workdir, start, self.config.wandb, self.config.to_dict()
            )
          )
        )
      self.console.print(summary.of_plan(self.run))
      asked = stack.enter_context(stop_requests())
      agree = processes.Agreement(self.run.mesh)
      self.stop = lambda: agree(asked())
      self.bar = stack.enter_context(
        contextlib.closing(
          progress.ProgressBar(self.console, start, self.run.total_steps)
        )
      )
      if start:
        self.bar.say(f'Going on from step {start:,}.')
        self.make_up(state, start)
      state = self.steps(state, start)
      self.draw(state, self.run.total_steps)
      if processes.first():
        report.write(self.workdir)
    return True


def train(
  run: Run,
  workdir: pathlib.Path,
  console: Console,
  profile: str | None = None,
) -> None:
  """Trains to the end, from wherever the workdir is.

  Leaves `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and
  `report/` in the workdir. What the task shows while it is learned, such as
  samples, is drawn anew in `report/NAME.png` at each evaluation, and kept as
  `report/NAME/STEP.png`.

  Args:
    run: what to do.
    workdir: of the run.
    console: to print on.
    profile: steps to trace, see `watch.Profile`.

  Raises:
    ConfigError: the workdir holds another run, or cannot be written.
    Preempted: asked to stop; everything is saved.
    TrainingError: the loss is not finite.
  """
  console = processes.console(console)
  if not _Loop(run, workdir, console, profile).go():
    console.print(f'This run is finished: {run.total_steps:,} steps done.')
    return
  if processes.first():
    console.print(summary.of_results(workdir, run))
