"""Scores a finished run: `python -m vit_jax.evaluate --workdir=D`.

`--config.data.test.source=folder:OTHER` scores it on other data.
"""

import json
from collections.abc import Sequence

import jax
from rich.console import Console

from vit_jax import command_line
from vit_jax.evaluation import mean_metrics
from vit_jax.training import inputs, mesh, trained


def main(arguments: Sequence[str], console: Console) -> None:
  """Prints the mean of the task's metrics over the test data."""
  options = command_line.parser(__doc__, 'vit_jax.evaluate')
  options.add_argument(
    '--step', help='of the checkpoint: a number or "best"; newest by default'
  )
  options.add_argument('--json', action='store_true', help='print JSON')
  known, overrides = command_line.split(options, arguments)
  workdir = command_line.required(known.workdir)
  model = trained.load(workdir, known.step, overrides)
  source = inputs.open_split(model.config, 'test')
  inputs.check_classes(model.task.class_names, source.class_names)
  transform = inputs.open_preprocess(model.config, 'test')
  devices = mesh.make(mesh.Settings())
  with jax.set_mesh(devices):
    metrics = mean_metrics.mean_metrics(
      mean_metrics.make_summed(model.task),
      jax.device_put(model.variables),
      inputs.test_batches(
        model.config, source, transform, devices, console.print
      ),
    )
  if known.json:
    print(json.dumps({'step': model.step, **metrics}))
    return
  test = model.config.data.test
  console.print(f'step {model.step:,} on {test.source} {test.split}')
  for name, value in metrics.items():
    shown = f'{value:,}' if isinstance(value, int) else f'{value:.4f}'
    console.print(f'  {name:<12} {shown}')


if __name__ == '__main__':
  command_line.run(main)
