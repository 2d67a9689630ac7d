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


@pytest.mark.parametrize(
  'steps,least',
  [
    # A tenth of the configs' steps: it draws the right colour at the right
    # place more often than not.
    pytest.param(
      (200, 120),
      {'codes_place': 0.8, 'single_place': 0.35, 'single_color': 0.3},
      id='tenth',
    ),
    # A third of them.
    pytest.param(
      (600, 400),
      {'codes_all': 0.7, 'single_place': 0.8, 'single_all': 0.25},
      id='third',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_pairs_that_were_never_seen_are_drawn(steps, least, tmp_path):
  vae, run, pictures = (str(tmp_path / x) for x in ('vae', 'run', 'pictures'))
  command(
    'train', f'--config={ROOT}/configs/dvae_shapes.py', f'--workdir={vae}',
    f'--config.total={steps[0]}steps', *AT_THE_END,
  )  # fmt: skip
  command(
    'train', f'--config={ROOT}/configs/dalle_shapes.py:{vae}',
    f'--workdir={run}', f'--config.total={steps[1]}steps', *SMALL, *AT_THE_END,
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
  for name, bound in least.items():
    assert found[f'generation/{name}'] > bound, found
  # Held against the captions of others.
  assert found['generation/chance_place'] < 0.15
  assert found['generation/chance_color'] < 0.2
  assert found['generation/chance_all'] < 0.05
