"""From nothing to pictures of texts that were never seen, by the commands."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Programs that are optimised, unlike those of other tests: hundreds of steps.
ENVIRONMENT = {
  name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'
} | {'JAX_PLATFORMS': 'cpu'}
AT_THE_END = ['--config.eval.every=100%', '--config.checkpoint.every=100%']
SMALL = [
  '--config.model.width=64', '--config.model.depth=2',
  '--config.model.mlp_dim=256', '--config.model.num_heads=2',
  '--config.optimizer.learning_rate=4e-3',
]  # fmt: skip


def command(name, *arguments):
  """Runs one in a process of its own; returns what it prints."""
  done = subprocess.run(
    [sys.executable, '-m', f'vit_jax.{name}', *arguments],
    cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.slow
def test_pairs_that_were_never_seen_are_drawn(tmp_path):
  vae, run, pictures = (str(tmp_path / x) for x in ('vae', 'run', 'pictures'))
  command(
    'train', f'--config={ROOT}/configs/dvae_shapes.py', f'--workdir={vae}',
    '--config.total=600steps', *AT_THE_END,
  )  # fmt: skip
  command(
    'train', f'--config={ROOT}/configs/dalle_shapes.py:{vae}',
    f'--workdir={run}', '--config.total=400steps', *SMALL, *AT_THE_END,
  )  # fmt: skip
  settings = ['--guidance=2', '--top-p=0.9']
  command(
    'generate', f'--workdir={run}', f'--out={pictures}', '--count=3', *settings,
    '--prompt=a small red square at the top left',
  )  # fmt: skip
  files = {file.name for file in (tmp_path / 'pictures').iterdir()}
  assert files == {'1.png', '2.png', '3.png', 'sheet.png'}
  printed = command(
    'evaluate', f'--workdir={run}', '--tasks=generation', '--json', *settings
  )
  found = json.loads(printed)
  # A third of the steps of configs/dalle_shapes.py, of a smaller model.
  assert found['generation/codes_all'] > 0.7
  assert found['generation/single_place'] > 0.8
  assert found['generation/single_all'] > 0.25
  # Held against the captions of others.
  assert found['generation/chance_place'] < 0.15
  assert found['generation/chance_all'] < 0.05
