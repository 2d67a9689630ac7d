"""launch/tpu_vm.sh on a Google Cloud of folders, see fake_gcloud.py.

Everything but Google Cloud, Python's packages and the training is real: what
is packed, sent, installed, started, supervised, and read back.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAKE = ROOT / 'tests' / 'launch' / 'fake_gcloud.py'

# Makes environments whose Python is itself, and trains what `program` says.
PYTHON = f"""#!/bin/bash
case "$1 $2" in
  -c\\ *) exec {sys.executable} "$@" ;;
  '-m venv') mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
  '-m pip')
    [[ $3 == freeze ]] && {{ printf 'jax==0.1\\n-e x\\npip==1\\n'; exit; }}
    echo "${{@: -1}}" >>"$HOME/installed"
    cp "$PIP_CONSTRAINT" "$HOME/pinned" ;;
  '-m vit_jax.train')
    printf x >>"$HOME/starts"
    printf '%s\\0' "${{@:3}}" >"$HOME/arguments"
    source "$FAKE_CLOUD/program" ;;
esac
"""

SAVES = """
trap 'touch "$HOME/saved"; exit 75' TERM
echo training
while [[ ! -e $FAKE_CLOUD/finish ]]; do sleep 0.01; done
exit 0
"""
# The first run of a slice is taken away; the next one ends well.
TWICE = f'[[ -e $FAKE_CLOUD/second ]] && exit 0; {SAVES}'

WHERE = ('--zone=z', '--type=v3-16', '--workdir=gs://bucket/run')
TRAIN = ('train', '--name=vit', *WHERE, '--spot', '--', '--config=c.py')


def git(folder, *arguments):
  subprocess.run(
    ['git', '-c', 'user.name=N', '-c', 'user.email=E', *arguments],
    cwd=folder,
    env={'PATH': os.environ['PATH'], 'GIT_CONFIG_GLOBAL': '/dev/null'},
    check=True,
    capture_output=True,
  )


def wait_for(condition):
  until = time.monotonic() + 40
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.02)


class Cloud:
  """A checkout with a history, and a Google Cloud to use it on."""

  def __init__(self, folder, variables=None):
    self.folder = folder / 'cloud'
    self.checkout = folder / 'a checkout'
    self.path = folder / 'bin'
    for path in (self.checkout, self.path, self.folder / 'plan'):
      path.mkdir(parents=True)
    (self.folder / 'calls').touch()
    shutil.copytree(ROOT / 'launch', self.checkout / 'launch')
    for name in ('setup.py', 'pyproject.toml', '.gitignore'):
      shutil.copy(ROOT / name, self.checkout)
    git(self.checkout, 'init', '--quiet')
    git(self.checkout, 'add', '--all')
    git(self.checkout, 'commit', '--quiet', '--message=first')
    self.add('gcloud', f'#!/bin/bash\nexec {sys.executable} {FAKE} "$@"\n')
    self.add('python3', PYTHON)
    self.train_as('exit 0')
    self.started = []
    self.variables = variables or {}

  def add(self, name, text):
    (self.path / name).write_text(text)
    (self.path / name).chmod(0o755)

  def train_as(self, program):
    (self.folder / 'program').write_text(program)

  def plan(self, verb, *lines):
    path = self.folder / 'plan' / verb
    path.write_text(''.join(f'{line}\n' for line in lines))

  @property
  def environment(self):
    return {
      'PATH': f'{self.path}:/usr/bin:/bin',
      'HOME': str(self.folder),
      'GIT_CONFIG_GLOBAL': '/dev/null',
      'FAKE_CLOUD': str(self.folder),
      'TPU_VM_POLL': '0.05',
      'TPU_VM_PATIENCE': '3',
      'RESTART_PAUSE': '0',
      **self.variables,
    }

  def start(self, *arguments):
    process = subprocess.Popen(
      [self.checkout / 'launch' / 'tpu_vm.sh', *arguments],
      env=self.environment,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    self.started.append(process)
    return process

  def run(self, *arguments, code=0):
    """Returns what a command printed: (stdout, stderr)."""
    process = self.start(*arguments)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, output + errors
    return output, errors

  def preempt(self, name='vit'):
    subprocess.run(
      [self.path / 'gcloud', 'preempt', name], env=self.environment, check=True
    )

  def calls(self, verb=''):
    """The calls of gcloud, 'tpu-vm ssh' without 'compute tpus'."""
    rows = (self.folder / 'calls').read_text().splitlines()
    calls = [json.loads(row)[2:] for row in rows]
    return [call for call in calls if call[1] == verb or not verb]

  def workers(self, name='vit'):
    return sorted(self.folder.glob(f'{name}-w-*'))

  def starts(self):
    """How often the training was started on each worker that is there."""
    return [
      (home / 'starts').stat().st_size if (home / 'starts').exists() else 0
      for home in self.workers()
    ]

  def state(self, name='vit'):
    path = self.folder / 'nodes' / name
    return json.loads(path.read_text())['state'] if path.exists() else None

  def wait_until_trains(self):
    wait_for(lambda: 1 <= len(self.starts()) == sum(map(bool, self.starts())))
    time.sleep(0.1)  # For its trap.

  def close(self):
    for process in self.started:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
      process.communicate()
    for name in {home.name.rsplit('-w-')[0] for home in self.workers('*')}:
      self.preempt(name)


@pytest.fixture
def cloud(tmp_path):
  cloud = Cloud(tmp_path)
  yield cloud
  cloud.close()


@pytest.mark.parametrize(
  'kind, runtime',
  [
    ('v3-8', 'tpu-ubuntu2204-base'),
    ('v4-32', 'tpu-ubuntu2204-base'),
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v5p-8', 'v2-alpha-tpuv5'),
    ('v6e-8', 'v2-alpha-tpuv6e'),
  ],
)
def test_dry_run_of_create(cloud, kind, runtime):
  place = '--zone=z --project=p'
  asked = (
    f'gcloud compute tpus tpu-vm describe vit {place} '
    "'--format=value(state,labels.managed_by)'"
  )
  printed, _ = cloud.run(
    'create', '--name=vit', *place.split(), f'--type={kind}', '--dry-run'
  )
  assert printed.splitlines() == [
    asked,
    f'gcloud compute tpus tpu-vm create vit --version={runtime} {place} '
    f'--accelerator-type={kind} --labels=managed_by=vit_jax',
    asked,
  ]
  assert not cloud.calls()
  assert not (cloud.checkout / '.cache').exists()


def test_dry_run_prints_what_is_done(cloud):
  arguments = [*TRAIN, "--config.mesh.rules=(('.*', 'fsdp'),)", 'a  b\nc']
  options = ['--queued', '--data=gs://data/set', '--delete-after']
  arguments[1:1] = options
  printed, _ = cloud.run(arguments[0], '--dry-run', *arguments[1:])
  assert not cloud.calls()
  (cloud.path / 'gcsfuse').symlink_to('/bin/true')
  cloud.run(*arguments)
  # Nobody is told how often the queue would be asked.
  asked = cloud.calls()
  done = [call for before, call in zip([None, *asked], asked) if call != before]
  taken_apart = subprocess.run(
    ['bash', '-c', 'gcloud() { printf "%s\\0" "$@" END; }\n' + printed],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split('\0END\0')
  expected = [call.split('\0')[2:] for call in taken_apart[:-1]]
  assert [c for c in expected if c[1] != 'describe'] == [
    c for c in done if c[1] != 'describe'
  ]


def test_trains_on_all_workers_from_nothing(cloud):
  (cloud.checkout / 'runs').mkdir()
  (cloud.checkout / 'runs' / 'ignored').touch()
  cloud.train_as('echo "step 1"; echo "$PWD" >"$HOME/folder"; exit 0')
  awkward = ['--config.x=a  b', '$HOME "q" \'r\' \\ *', 'ü\n;', '']
  printed, errors = cloud.run(*TRAIN, *awkward)
  assert 'step 1' in printed
  assert 'costs money' in errors
  assert len(cloud.workers()) == 2
  commit = subprocess.check_output(
    ['git', 'rev-parse', 'HEAD'], cwd=cloud.checkout, text=True
  )
  for home in cloud.workers():
    code = home / 'vit_jax_launch' / 'code'
    assert (home / 'arguments').read_text().split('\0')[:-1] == [
      '--workdir=gs://bucket/run',
      '--config=c.py',
      *awkward,
    ]
    assert (home / 'installed').read_text() == f'{code}[tpu,gcs,tfds]\n'
    assert (home / 'folder').read_text() == f'{code}\n'
    assert (code / 'COMMIT').read_text() == commit
    assert (code / 'setup.py').exists()
    assert not (code / 'runs').exists()
    assert (home / 'starts').read_text() == 'x'


def test_versions_are_those_that_were_tested(cloud):
  python = cloud.checkout / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  shutil.copy(cloud.path / 'python3', python)
  cloud.run(*TRAIN)
  for home in cloud.workers():
    assert (home / 'pinned').read_text() == 'jax==0.1\n'


def test_data_are_copied(cloud):
  cloud.train_as('[[ $(<../data/copied) == gs://data/set ]] || exit 3; exit 0')
  cloud.run('train', '--data=gs://data/set', '--copy-data', *TRAIN[1:])
  assert cloud.starts() == [1, 1]


def test_checkout_is_replaced_as_a_whole(cloud):
  cloud.run(*TRAIN)
  git(cloud.checkout, 'rm', '--quiet', 'launch/test.sh')
  git(cloud.checkout, 'commit', '--quiet', '--message=second')
  cloud.run(*TRAIN)
  for home in cloud.workers():
    code = home / 'vit_jax_launch' / 'code'
    assert not (code / 'launch' / 'test.sh').exists()
    # Its requirements are the same: nothing was installed again.
    assert len((home / 'installed').read_text().splitlines()) == 1


@pytest.mark.parametrize('code', [2, 3])
def test_broken_training_is_not_started_again(cloud, code):
  cloud.train_as(f'echo "because of this"; exit {code}')
  printed, _ = cloud.run(*TRAIN, code=code)
  assert 'because of this' in printed
  assert cloud.starts() == [1, 1]
  assert cloud.state() == 'READY'


def test_crash_is_started_again(cloud):
  cloud.train_as('[[ $(<"$HOME/starts") == xx ]] || exit 1; exit 0')
  cloud.run(*TRAIN)
  assert cloud.starts() == [2, 2]


def test_one_broken_worker_ends_the_others(cloud):
  cloud.train_as(f'[[ $HOME == *-w-1 ]] && exit 3; {SAVES}')
  cloud.run(*TRAIN, code=3)
  assert (cloud.workers()[0] / 'saved').exists()


@pytest.mark.parametrize('options', [(), ('--queued',)])
def test_preempted_slice_is_created_again(cloud, options):
  (cloud.folder / 'waits').write_text('3')
  cloud.train_as(TWICE)
  arguments = [*TRAIN, 'a  b']
  arguments[1:1] = options
  process = cloud.start(*arguments)
  cloud.wait_until_trains()
  (cloud.folder / 'second').touch()
  cloud.plan('create', 'fail no capacity', 'fail no capacity')
  cloud.preempt()
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert 'no capacity' in errors
  first = sorted(cloud.folder.glob('gone-*'))
  assert [(home / 'saved').exists() for home in first] == [True, True]
  assert len(cloud.calls('create')) == 4
  assert len(cloud.calls('delete')) == 1
  assert len({json.dumps(call) for call in cloud.calls('create')}) == 1
  assert cloud.starts() == [1, 1]
  kept, again = (h / 'arguments' for h in (first[0], cloud.workers()[0]))
  assert kept.read_text() == again.read_text()


def test_resume_remembers_options_and_commit(cloud):
  cloud.train_as(TWICE)
  process = cloud.start(*TRAIN)
  cloud.wait_until_trains()
  os.killpg(process.pid, signal.SIGINT)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'resume --name=vit' in errors
  assert cloud.starts() == [1, 1]  # It goes on.
  commit = (cloud.workers()[0] / 'vit_jax_launch/code/COMMIT').read_text()
  git(cloud.checkout, 'commit', '--quiet', '--allow-empty', '--message=second')
  (cloud.checkout / 'setup.py').write_text('not committed')
  (cloud.folder / 'second').touch()
  cloud.preempt()
  cloud.run('resume', '--name=vit')
  assert cloud.starts() == [1, 1]
  created = cloud.calls('create')
  assert len(created) == 2 and created[0] == created[1]
  again = (cloud.workers()[0] / 'vit_jax_launch/code/COMMIT').read_text()
  assert commit == again


def test_rebooted_worker_trains_again(cloud):
  cloud.train_as(SAVES)
  process = cloud.start(*TRAIN)
  cloud.wait_until_trains()
  # All of it at once, and nobody left to note an exit code.
  pid = (cloud.workers()[1] / 'vit_jax_launch/run/pid').read_text()
  subprocess.run(['pkill', '-KILL', '--session', pid.strip()], check=True)
  wait_for(lambda: cloud.starts() == [1, 2])
  (cloud.folder / 'finish').touch()
  assert process.wait(timeout=60) == 0
  # All workers are asked to start. The first goes on, unless it has ended
  # before, on a busy machine: then it is started once more, and finds all done.
  assert cloud.starts() in ([1, 2], [2, 2])


def test_broken_connection_does_no_harm(cloud):
  cloud.plan('scp', 'drop')
  cloud.plan('ssh', 'drop', 'drop', 'drop')  # install, start, status
  cloud.train_as(SAVES)
  process = cloud.start(*TRAIN)
  cloud.wait_until_trains()
  wait_for(lambda: len(cloud.calls('ssh')) > 3)
  (cloud.folder / 'finish').touch()
  assert process.wait(timeout=60) == 0
  assert cloud.starts() == [1, 1]
  for home in cloud.workers():
    assert len((home / 'installed').read_text().splitlines()) == 1


def test_stopped_training_saves_and_can_be_resumed(cloud):
  cloud.train_as(TWICE)
  process = cloud.start(*TRAIN)
  cloud.wait_until_trains()
  cloud.run('stop', '--name=vit')
  assert all((home / 'saved').exists() for home in cloud.workers())
  assert process.wait(timeout=60) == 75
  printed, _ = cloud.run('status', '--name=vit')
  assert [line.split()[0] for line in printed.splitlines()] == ['stopped'] * 2
  (cloud.folder / 'second').touch()
  cloud.run('resume', '--name=vit')
  assert cloud.starts() == [2, 2]
  assert not cloud.calls('delete')


def test_another_training_has_to_be_stopped_first(cloud):
  cloud.train_as(SAVES)
  cloud.start(*TRAIN)
  cloud.wait_until_trains()
  _, errors = cloud.run(*TRAIN, '--config.seed=1', code=2)
  assert 'stop it first' in errors
  git(cloud.checkout, 'commit', '--quiet', '--allow-empty', '--message=second')
  _, errors = cloud.run(*TRAIN, code=2)
  assert 'another checkout' in errors
  assert cloud.starts() == [1, 1]


@pytest.mark.parametrize('options', [[], ['--queued']])
def test_deletes_what_it_created(cloud, options):
  cloud.run('create', '--name=vit', *WHERE, *options)
  cloud.run('delete', '--name=vit')
  assert cloud.state() is None
  _, errors = cloud.run('delete', '--name=vit')
  assert 'no slice' in errors


@pytest.mark.parametrize('state', ['READY', 'PREEMPTED'])
def test_does_not_delete_what_others_created(cloud, state):
  path = cloud.folder / 'nodes' / 'vit'
  path.parent.mkdir()
  path.write_text(json.dumps(dict(state=state, label='', type='v3-8')))
  command = ['delete', '--name=vit', '--zone=z']
  if state == 'PREEMPTED':
    command = TRAIN
  _, errors = cloud.run(*command, code=2)
  assert '--yes' in errors
  assert not cloud.calls('delete')
  cloud.run(command[0], '--yes', *command[1:])
  assert len(cloud.calls('delete')) == 1


def test_deletes_in_the_end_if_asked_to(cloud):
  cloud.train_as('echo why; exit 3')
  arguments = ['train', '--delete-after', *TRAIN[1:]]
  printed, _ = cloud.run(*arguments, code=3)
  assert 'why' in printed
  assert cloud.state() is None


def test_what_is_not_committed_is_sent_only_on_demand(cloud):
  (cloud.checkout / 'new.py').touch()
  _, errors = cloud.run(*TRAIN, code=2)
  assert 'new.py' in errors and '--dirty' in errors
  assert not cloud.calls()
  cloud.run('train', '--dirty', *TRAIN[1:])
  code = cloud.workers()[0] / 'vit_jax_launch' / 'code'
  assert (code / 'new.py').exists()
  assert '-with-changes-' in (code / 'COMMIT').read_text()
  status = ['git', 'status', '--short']
  assert b'?? new.py' in subprocess.check_output(status, cwd=cloud.checkout)


@pytest.mark.parametrize(
  'verb, calls', [('create', 1), ('describe', 3), ('scp', 3), ('ssh', 3)]
)
def test_failing_cloud_is_left_alone_in_the_end(cloud, verb, calls):
  cloud.plan(verb, *['fail PERMISSION_DENIED'] * 9)
  _, errors = cloud.run(*TRAIN, code=1)
  assert 'PERMISSION_DENIED' in errors
  assert len(cloud.calls(verb)) == calls
  assert not cloud.calls('delete')


def test_cloud_that_fails_for_a_moment(cloud):
  cloud.plan('describe', 'fail', 'fail', 'ok')
  cloud.plan('ssh', 'ok', 'fail')
  cloud.run(*TRAIN)
  assert cloud.starts() == [1, 1]


def test_logs_and_ssh(cloud):
  cloud.train_as('echo $HOME; exit 0')
  cloud.run(*TRAIN)
  second = str(cloud.workers()[1])
  printed, _ = cloud.run('logs', '--name=vit', '--worker=1')
  assert second in printed
  line = 'cd / && echo "$PWD  $HOME"'
  printed, _ = cloud.run('ssh', '--name=vit', '--worker=1', '--', line)
  assert printed == f'/  {second}\n'
  printed, _ = cloud.run('ssh', '--name=vit')
  assert printed == 'a shell\n'


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['fly', '--name=vit'], "no command 'fly'"),
    (['train', *TRAIN[2:]], "--name='' is no name"),
    (['train', '--name=Vit', *TRAIN[2:]], "--name='Vit' is no name"),
    (['create', '--name=vit', '--type=v3-8'], '--zone is missing'),
    (['create', '--name=vit', '--zone=z'], '--type= is not known'),
    (['create', '--name=vit', '--zone=z', '--type=v9-8'], 'expected v2-N'),
    (['create', '--name=vit', '--zone', 'z'], "no option '--zone'"),
    (['train', '--name=vit', *WHERE[:2], '--', '--config=c'], 'can vanish'),
    ([*TRAIN, '--workdir=gs://other'], "before the '--'"),
    ([*TRAIN[:-1]], '--config=FILE.py is missing'),
    (['train', '--data=/data', *TRAIN[1:]], 'gs://BUCKET/FOLDER'),
  ],
)
def test_says_what_is_wrong_before_it_begins(cloud, arguments, said):
  _, errors = cloud.run(*arguments, code=2)
  assert said in errors
  assert not cloud.calls()
