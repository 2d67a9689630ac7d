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
]  # fmt: skip


def command(name, *arguments):
  """Runs one in a process of its own; returns what it prints."""
  done = subprocess.run(
    [sys.executable, '-m', f'vit_jax.{name}', *arguments],
    cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


def trained(tmp_path, steps, pixels):
  """Trains a discrete VAE and DALL-E; returns the folder of the second."""
  vae, run = str(tmp_path / 'vae'), str(tmp_path / 'run')
  scenes = [
    f'--config.data.{split}.source=shapes:pixels={pixels}'
    for split in ('train', 'test')
  ]
  command(
    'train', f'--config={ROOT}/configs/dvae_shapes.py', f'--workdir={vae}',
    f'--config.total={steps[0]}steps', *scenes, *AT_THE_END,
  )  # fmt: skip
  command(
    'train', f'--config={ROOT}/configs/dalle_shapes.py:{vae}',
    f'--workdir={run}', f'--config.total={steps[1]}steps', *SMALL, *scenes,
    f'--config.model.grid={(pixels // 4,) * 2}', *AT_THE_END,
  )  # fmt: skip
  return run


def scores(run, *settings):
  """Returns what the checker reads from pictures, without the task's name."""
  printed = command(
    'evaluate', f'--workdir={run}', '--tasks=generation', '--json', *settings
  )
  found = json.loads(printed)
  return {name.removeprefix('generation/'): found[name] for name in found}


def test_right_places_and_colors_after_a_few_steps(tmp_path):
  # A quarter of the codes of configs/dalle_shapes.py: enough for that.
  run = trained(tmp_path, steps=(500, 250), pixels=24)
  lines = (tmp_path / 'vae' / 'metrics.jsonl').read_text().splitlines()
  # Of 512, a tenth is used by a batch of so small pictures; of a codebook that
  # has collapsed a hundredth.
  assert json.loads(lines[-1])['test/codes_used'] > 0.05
  found = scores(run)
  assert found['codes_place'] > 0.9
  assert found['single_place'] > 0.75
  assert found['single_color'] > 0.35
  assert found['single_all'] > 0.05
  # Held against the captions of others.
  assert found['chance_place'] < 0.2
  assert found['chance_color'] < 0.15
  assert found['chance_all'] < 0.03


@pytest.mark.slow
def test_pairs_that_were_never_seen_are_drawn(tmp_path):
  # Half of the steps of configs/dalle_shapes.py, of a smaller model.
  run = trained(tmp_path, steps=(600, 600), pixels=48)
  pictures = tmp_path / 'pictures'
  settings = ['--guidance=2', '--top-p=0.9']
  command(
    'generate', f'--workdir={run}', f'--out={pictures}', '--count=3', *settings,
    '--prompt=a small red square at the top left',
  )  # fmt: skip
  files = {file.name for file in pictures.iterdir()}
  assert files == {'1.png', '2.png', '3.png', 'sheet.png'}
  clip = str(tmp_path / 'clip')
  command(
    'train', f'--config={ROOT}/configs/clip_shapes.py', f'--workdir={clip}',
    '--config.total=400steps', *AT_THE_END,
  )  # fmt: skip
  found = scores(run, *settings, '--best-of=4', f'--clip={clip}')
  assert found['codes_all'] > 0.7
  assert found['single_place'] > 0.8
  assert found['single_all'] > 0.35
  assert found['best_of_4_all'] > found['single_all']
  assert found['chance_place'] < 0.15
  assert found['chance_all'] < 0.05
