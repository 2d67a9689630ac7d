"""launch/supervise.sh: what is started again, and what is not."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from vit_jax import command_line

SUPERVISE = pathlib.Path(__file__).parents[2] / 'launch' / 'supervise.sh'

# Ends with the next of the codes, or as the last one; each start is counted.
ENDS = """
printf x >>starts
codes=($CODES)
starts=$(stat --format=%s starts)
code=${codes[starts - 1]-${codes[-1]}}
[[ $code != KILL ]] || kill -9 $$
exit "$code"
"""

# Saves as long as it takes when it is asked to stop.
SAVES = """
trap 'sleep 0.3; touch saved; exit 75' TERM INT
touch started
while :; do sleep 0.01; done
"""


def wait_for(path):
  until = time.monotonic() + 20
  while not path.exists():
    assert time.monotonic() < until, path
    time.sleep(0.01)


def end(process):
  """Returns the exit code."""
  return process.wait(timeout=30)


@pytest.fixture
def start(tmp_path):
  """Starts the supervisor of a line of bash."""
  started = []

  def supervise(line, *options, **variables):
    process = subprocess.Popen(
      [SUPERVISE, *options, 'bash', '-c', line],
      cwd=tmp_path,
      env={'PATH': os.environ['PATH'], 'RESTART_PAUSE': '0', **variables},
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    return process

  yield supervise
  for process in started:
    # The command is a group of its own in the same session.
    kill = ['pkill', '-KILL', '--session', str(process.pid)]
    subprocess.run(kill, check=False)
    process.communicate()


def starts(tmp_path):
  return (tmp_path / 'starts').stat().st_size


@pytest.mark.parametrize(
  'code',
  [
    command_line.DONE,
    command_line.REFUSED,
    command_line.STOPPED,
    command_line.INTERRUPTED,
  ],
)
def test_end_is_the_end(start, tmp_path, code):
  assert end(start(ENDS, CODES=str(code))) == code
  assert starts(tmp_path) == 1


def test_missing_command_is_the_end(tmp_path):
  done = subprocess.run([SUPERVISE, tmp_path / 'nothing'], capture_output=True)
  assert done.returncode == 127
  assert b'again' not in done.stderr


@pytest.mark.parametrize('code', [command_line.PREEMPTED, 1, 'KILL'])
def test_starts_again(start, tmp_path, code):
  assert end(start(ENDS, CODES=f'{code} {code} 0')) == 0
  assert starts(tmp_path) == 3


def test_gives_up_after_quick_crashes(start, tmp_path):
  process = start(ENDS, CODES='1 KILL', RESTART_LIMIT='3')
  assert end(process) == 128 + signal.SIGKILL
  assert starts(tmp_path) == 3
  assert 'giving up' in process.stderr.read()


@pytest.mark.parametrize(
  'codes, variables',
  [('1 1 75 1 1 0', {}), ('1 1 1 1 1 0', {'RESTART_QUICK': '0'})],
)
def test_good_runs_do_not_count_as_crashes(start, tmp_path, codes, variables):
  process = start(ENDS, CODES=codes, RESTART_LIMIT='3', **variables)
  assert end(process) == 0
  assert starts(tmp_path) == 6


def test_pauses_grow_to_a_limit(start, tmp_path):
  # Pauses are not waited for: `sleep` is a stand-in.
  fake = tmp_path / 'bin' / 'sleep'
  fake.parent.mkdir()
  fake.write_text(f'#!/bin/bash\necho $1 >>{tmp_path}/pauses\n')
  fake.chmod(0o755)
  process = start(
    ENDS,
    CODES='1 1 1 1 75 1 0',
    RESTART_PAUSE='5',
    RESTART_PAUSE_LIMIT='15',
    PATH=f'{fake.parent}:{os.environ["PATH"]}',
  )
  assert end(process) == 0
  pauses = (tmp_path / 'pauses').read_text().split()
  assert pauses == ['5', '10', '15', '15', '5', '5']


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_is_passed_on_and_waited_for(start, tmp_path, number):
  process = start(SAVES)
  wait_for(tmp_path / 'started')
  for _ in range(3):  # Machines ask more than once as they go down.
    process.send_signal(number)
    time.sleep(0.05)
  assert end(process) == 75
  assert (tmp_path / 'saved').exists()


def test_can_be_stopped_between_two_runs(start, tmp_path):
  process = start(ENDS, CODES='1', RESTART_PAUSE='60')
  wait_for(tmp_path / 'starts')
  time.sleep(0.2)
  process.terminate()
  # Whatever was saved is there to go on from.
  assert end(process) == 75
  assert starts(tmp_path) == 1


def test_record_locks_and_keeps_the_code(start, tmp_path):
  record = tmp_path / 'record'
  first = start(SAVES, f'--record={record}')
  wait_for(tmp_path / 'started')
  assert int((record / 'pid').read_text()) == first.pid
  second = start(SAVES, f'--record={record}')
  assert end(second) == 2
  assert 'already' in second.stderr.read()
  first.terminate()
  end(first)
  assert (record / 'code').read_text() == '75\n'
  third = start('[[ ! -e record/code ]]', '--record=record')
  assert end(third) == 0
  assert (record / 'code').read_text() == '0\n'


def test_record_is_locked_while_the_command_outlives_its_supervisor(
  start, tmp_path
):
  record = tmp_path / 'record'
  first = start('echo $$ >child; ' + SAVES, f'--record={record}')
  wait_for(tmp_path / 'started')
  first.kill()
  end(first)
  assert end(start(ENDS, f'--record={record}', CODES='0')) == 2
  os.kill(int((tmp_path / 'child').read_text()), signal.SIGKILL)
