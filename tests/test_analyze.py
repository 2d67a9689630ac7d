"""What a person asks of `analyze`, and what they see."""

import io
import json
import pathlib

import pytest
from rich.console import Console

from vit_jax import analyze, config

DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
SMALL = (f'--config={DIGITS}', '--config.model.depth=1')


def call(*arguments):
  """Returns what the command prints on a terminal of 80 columns."""
  console = Console(file=io.StringIO(), width=80)
  analyze.main(arguments, console)
  text = console.file.getvalue()
  assert max(map(len, text.splitlines())) <= 80
  return text


def test_compute_prints_and_writes_the_same(tmp_path):
  file = tmp_path / 'cost.json'
  text = call('compute', *SMALL, '--utilisation=0.25', f'--json={file}')
  cost = json.loads(file.read_text())
  assert f'{cost["parameters"]:,}' in text
  assert 'Time at 25% of the peak' in text
  core = cost['days']['TPU v3']
  assert core['of'] == 'core'
  # Seconds of one core, from the arithmetic of the whole run.
  seconds = cost['training_exaflops'] * 1e18 / (0.25 * 61.5e12)
  assert core['days'] == pytest.approx(seconds / 86_400)
  images = cost['training_images']
  flops = 6e9 * cost['forward_gmacs'] * images
  assert cost['training_exaflops'] * 1e18 == pytest.approx(flops)


@pytest.mark.parametrize(
  'arguments,message',
  [
    (('computer',), "'computer' cannot be analysed. Did you mean 'compute'"),
    (('compute', *SMALL, '--utilisation=40'), 'not a share of the peak'),
    (('compute', *SMALL, '--utilization=.4'), "Did you mean '--utilisation'"),
  ],
)
def test_requests_that_cannot_work(arguments, message):
  with pytest.raises(config.ConfigError, match=message):
    call(*arguments)


def test_help_names_every_question():
  text = call()
  assert all(f'  {what} ' in text for what in analyze.WHATS)
