"""The layout is the architecture: imports go one way."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_imports_go_one_way():
  result = subprocess.run(
    [sys.executable, '-m', 'importlinter.cli', 'lint-imports'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout + result.stderr


def test_nothing_reads_a_config_with_a_default_of_its_own():
  # `config.get(key, default)` passes silently when the key is misspelt.
  found = [
    f'{path}:{number}'
    for path in (ROOT / 'vit_jax').rglob('*.py')
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(r'config\.get\(|settings\.get\(', line)
    and path.name != 'config.py'
    and path.parent.name != 'released'  # Their config is somebody else's.
  ]
  assert not found


def test_training_needs_no_tensorflow():
  modules = (
    'analyze', 'benchmark', 'convert', 'evaluate', 'few_shot', 'plan',
    'generate', 'predict', 'sweep', 'train', 'train_tokenizer',
  )  # fmt: skip
  code = (
    ''.join(f'import vit_jax.{name}\n' for name in modules)
    + "import sys\nsys.exit('tensorflow' in sys.modules)"
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
