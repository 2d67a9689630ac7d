"""launch/local.sh and launch/test.sh with a Python that only keeps a diary."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Answers -c as Python does; makes environments whose Python is itself; writes
# everything else into the diary. Fails to install where FAIL says so.
PYTHON = f"""#!/bin/bash
case "$1 $2" in
  -c\\ *) exec {sys.executable} "$@" ;;
  '-m venv')
    echo "venv ${{*:3}}" >>"$DIARY"
    folder="${{@: -1}}"
    [[ $3 == --clear ]] && rm -rf "$folder"
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    for tool in ruff lint-imports shellcheck pytest; do
      printf '#!/bin/bash\\necho "%s $*" >>"$DIARY"\\n' $tool \\
        >"$folder/bin/$tool"
      chmod +x "$folder/bin/$tool"
    done ;;
  '-m pip')
    echo "pip ${{@: -1}}" >>"$DIARY"
    [[ -z ${{FAIL:-}} ]] ;;
  *)
    echo "cache $JAX_COMPILATION_CACHE_DIR" >>"$DIARY"
    printf '%s\\n' "$@" >>"$DIARY" ;;
esac
"""


class Machine:
  """A checkout, a PATH without any other Python, and a diary."""

  def __init__(self, folder):
    self.checkout = folder / 'a checkout'
    self.elsewhere = folder / 'elsewhere'
    self.path = folder / 'bin'
    self.diary = folder / 'diary'
    for path in (self.checkout / '.ci', self.elsewhere, self.path):
      path.mkdir(parents=True)
    shutil.copytree(ROOT / 'launch', self.checkout / 'launch')
    shutil.copy(ROOT / '.ci' / 'run', self.checkout / '.ci')
    for name in ('setup.py', 'pyproject.toml'):
      shutil.copy(ROOT / name, self.checkout)
    for tool in ('bash', 'cat', 'chmod', 'cp', 'dirname', 'mkdir', 'rm'):
      (self.path / tool).symlink_to(shutil.which(tool))
    self.add_python('python3')

  def add_python(self, name, text=PYTHON):
    (self.path / name).write_text(text)
    (self.path / name).chmod(0o755)

  def remove_python(self, name):
    (self.path / name).unlink()

  def run(self, script, *arguments, **variables):
    """Returns what a script did: the process and the diary's new lines."""
    self.diary.write_text('')
    done = subprocess.run(
      [self.checkout / script, *arguments],
      cwd=self.elsewhere,
      env={'PATH': str(self.path), 'DIARY': str(self.diary), **variables},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
    )
    return done, self.diary.read_text().splitlines()

  def trained(self, *arguments, **variables):
    """Returns the diary of a successful local.sh."""
    done, diary = self.run('launch/local.sh', *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return diary


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def test_first_start_installs_and_trains_digits(machine):
  here = machine.checkout
  assert machine.trained() == [
    f'venv --clear {here}/.venv',
    f'pip {here}',
    f'cache {here}/.cache/jax',
    '-m',
    'vit_jax.train',
    f'--config={here}/configs/digits.py',
    f'--workdir={here}/runs/digits',
  ]


def test_second_start_does_not_install(machine):
  first = machine.trained()
  assert machine.trained() == first[2:]


@pytest.mark.parametrize(
  'arguments',
  [
    ['--config=my configs/x.py:B/16', '--workdir=some where'],
    ['--config', 'x.py', '--check', "--config.mesh.rules=(('.*', 'fsdp'),)"],
    ['--config=x.py', '--config.data.train.split=train[:*]'],
  ],
)
def test_arguments_are_passed_on_as_they_are(machine, arguments):
  diary = machine.trained(*arguments)
  assert diary[diary.index('vit_jax.train') + 1 :] == arguments


def test_overrides_keep_the_default_experiment(machine):
  diary = machine.trained('--config.total=1ep')
  assert diary[-3:] == [
    f'--config={machine.checkout}/configs/digits.py',
    f'--workdir={machine.checkout}/runs/digits',
    '--config.total=1ep',
  ]


def test_own_workdir_keeps_the_default_configuration(machine):
  diary = machine.trained('--workdir=mine')
  assert diary[-2:] == [
    f'--config={machine.checkout}/configs/digits.py',
    '--workdir=mine',
  ]


def test_own_cache_is_kept(machine):
  diary = machine.trained(JAX_COMPILATION_CACHE_DIR='/somewhere')
  assert 'cache /somewhere' in diary


def test_interrupted_install_is_repaired(machine):
  done, diary = machine.run('launch/local.sh', FAIL='1')
  assert done.returncode != 0
  assert 'vit_jax.train' not in diary
  diary = machine.trained()
  assert diary[0].startswith('venv --clear')
  assert diary[1].startswith('pip')
  assert 'vit_jax.train' in diary


def test_interrupted_update_is_repaired(machine):
  machine.trained()
  with open(machine.checkout / 'setup.py', 'a') as file:
    file.write('# one more requirement\n')
  done, _ = machine.run('launch/local.sh', FAIL='1')
  assert done.returncode != 0
  assert machine.trained()[0].startswith('venv --clear')


@pytest.mark.parametrize('name', ['setup.py', 'pyproject.toml'])
def test_new_requirements_are_installed(machine, name):
  machine.trained()
  with open(machine.checkout / name, 'a') as file:
    file.write('# one more requirement\n')
  diary = machine.trained()
  # Into the environment that there is.
  assert diary[0] == f'pip {machine.checkout}'
  assert not any(line.startswith('venv') for line in diary)


def test_moved_checkout_is_installed_again(machine):
  machine.trained()
  machine.checkout = machine.checkout.rename(machine.elsewhere / 'moved')
  assert machine.trained()[0].startswith('venv --clear')


def test_another_python_is_found(machine):
  machine.add_python('python3', '#!/bin/bash\nexit 1\n')
  machine.add_python('python3.12')
  assert 'vit_jax.train' in machine.trained()


def test_missing_python_is_told(machine):
  machine.remove_python('python3')
  done, diary = machine.run('launch/local.sh')
  assert done.returncode != 0
  assert not diary
  assert 'Python 3.11 or newer' in done.stderr
  assert 'apt install' in done.stderr


def test_tests_are_checked_and_run(machine):
  machine.trained()
  done, diary = machine.run('launch/test.sh', '-k', 'two words', '-m', 'slow')
  assert done.returncode == 0, done.stderr
  assert diary[0] == f'pip {machine.checkout}[test]'
  assert [line.split()[0] for line in diary[1:]] == [
    'ruff',
    'ruff',
    'lint-imports',
    'shellcheck',
    'pytest',
  ]
  assert diary[-1].endswith('-k two words -m slow')
  # The package itself came with the extra.
  assert not any(line.startswith('pip') for line in machine.trained())


def test_ci_runs_the_tests(machine):
  done, diary = machine.run('.ci/run')
  assert done.returncode == 0, done.stderr
  assert diary[-1].startswith('pytest')


def test_failed_check_fails_the_ci(machine):
  machine.run('.ci/run')
  ruff = machine.checkout / '.venv' / 'bin' / 'ruff'
  ruff.write_text('#!/bin/bash\nexit 1\n')
  done, diary = machine.run('.ci/run')
  assert done.returncode == 1
  assert not any(line.startswith('pytest') for line in diary)


def test_scripts_can_be_started():
  for name in ('launch/local.sh', 'launch/test.sh', '.ci/run'):
    assert os.access(ROOT / name, os.X_OK), name
