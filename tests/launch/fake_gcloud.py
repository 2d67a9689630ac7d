"""Plays Google Cloud: slices are folders, and their workers run here.

In the folder FAKE_CLOUD:
  calls         the arguments of each call, as JSON, one a line
  nodes/NAME    a TPU VM: state, label and type, as JSON
  queue/NAME    a queued resource, the same
  NAME-w-0, ... the homes of its workers
  plan/VERB     what becomes of the next calls, one a line: `ok`, `fail TEXT`,
                or for ssh and scp `drop`, a connection that breaks when all
                is done, so that all is done again
  waits         how often a queue is asked before it gives capacity

`fake_gcloud preempt NAME` takes a slice away: SIGTERM, some time, SIGKILL.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(os.environ['FAKE_CLOUD'])
FORMATS = {
  'queued-resources': 'state.state,tpu.nodeSpec[0].node.labels.managed_by',
  'tpu-vm': 'state,labels.managed_by',
}
CREATE = ['--zone', '--project', '--accelerator-type', '--labels', '--spot']
FLAGS = {
  'tpu-vm create': [*CREATE, '--version'],
  'tpu-vm describe': ['--zone', '--project', '--format'],
  'tpu-vm delete': ['--zone', '--project', '--quiet'],
  'tpu-vm ssh': ['--zone', '--project', '--worker', '--command'],
  'tpu-vm scp': ['--zone', '--project', '--worker', '--recurse'],
  'queued-resources create': [*CREATE, '--node-id', '--runtime-version'],
  'queued-resources describe': ['--zone', '--project', '--format'],
  'queued-resources delete': ['--zone', '--project', '--quiet', '--force'],
}


def fail(code, text):
  print(f'ERROR: (gcloud) {text}', file=sys.stderr)
  sys.exit(code)


def planned(verb):
  """Takes the next line of the plan of a verb."""
  path = ROOT / 'plan' / verb
  lines = path.read_text().splitlines() if path.exists() else []
  if lines:
    path.write_text(''.join(f'{line}\n' for line in lines[1:]))
  return lines[0] if lines else 'ok'


def read(path):
  if not path.exists():
    fail(1, f"NOT_FOUND: Resource '{path.name}' was not found.")
  return json.loads(path.read_text())


def write(path, record):
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(record))


def homes(name):
  return sorted(ROOT.glob(f'{name}-w-*'))


def add_node(name, record):
  write(ROOT / 'nodes' / name, {**record, 'state': 'READY'})
  family, size = record['type'].split('-')
  for worker in range(max(1, int(size) // 8)):
    (ROOT / f'{name}-w-{worker}').mkdir()


def create(kind, name, flags):
  key, _, label = flags['--labels'].partition('=')
  assert key == 'managed_by'
  record = dict(type=flags['--accelerator-type'], label=label)
  if kind == 'queued-resources':
    assert flags['--node-id'] == name
    path = ROOT / 'queue' / name
    record['state'] = 'WAITING_FOR_RESOURCES'
  else:
    path = ROOT / 'nodes' / name
  if path.exists():
    fail(1, f'ALREADY_EXISTS: {name}')
  if kind == 'queued-resources':
    write(path, record)
  else:
    add_node(name, record)


def describe(kind, name, flags):
  assert flags['--format'] == f'value({FORMATS[kind]})'
  if kind == 'tpu-vm':
    record = read(ROOT / 'nodes' / name)
  else:
    record = read(ROOT / 'queue' / name)
    if record['state'] == 'WAITING_FOR_RESOURCES':
      waits = ROOT / 'waits'
      left = int(waits.read_text()) if waits.exists() else 0
      waits.write_text(str(left - 1))
      if left <= 0:
        record['state'] = 'ACTIVE'
        write(ROOT / 'queue' / name, record)
        add_node(name, record)
  print(record['state'], record['label'], sep='\t')


def processes(home):
  """The processes of a worker: the session that its supervisor began."""
  pid = home / 'vit_jax_launch' / 'run' / 'pid'
  session = pid.read_text().strip() if pid.exists() else None
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      state, _, _, of_session = path.read_text().rsplit(')')[1].split()[:4]
    except OSError:
      continue
    if of_session == session and state != 'Z':
      found.append(int(path.parent.name))
  return found


def end(home, number):
  for process in processes(home):
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, number)


def clear(name, grace=0.0):
  """Ends everything on the workers, and removes them."""
  for home in homes(name):
    end(home, signal.SIGTERM)
  until = time.monotonic() + grace
  while any(map(processes, homes(name))) and time.monotonic() < until:
    time.sleep(0.05)
  for home in homes(name):
    end(home, signal.SIGKILL)
    home.rename(ROOT / f'gone-{time.monotonic_ns()}')


def delete(kind, name, flags):
  read(ROOT / ('nodes' if kind == 'tpu-vm' else 'queue') / name)
  assert kind == 'tpu-vm' or '--force' in flags
  clear(name)
  for folder in ('nodes', 'queue'):
    (ROOT / folder / name).unlink(missing_ok=True)


def preempt(name):
  clear(name, grace=5.0)
  for folder, state in (('nodes', 'PREEMPTED'), ('queue', 'SUSPENDED')):
    path = ROOT / folder / name
    if path.exists():
      write(path, {**json.loads(path.read_text()), 'state': state})


def on_workers(name, flags, act, plan):
  """Does something on the chosen workers at once; ends with their code."""
  state = read(ROOT / 'nodes' / name)['state']
  if state != 'READY':
    fail(1, f'The TPU VM is in state "{state}".')
  chosen = homes(name)
  if flags.get('--worker', '0') != 'all':
    chosen = [chosen[int(flags.get('--worker', '0'))]]
  for _ in range(2 if plan == 'drop' else 1):
    with concurrent.futures.ThreadPoolExecutor() as pool:
      codes = [*pool.map(act, chosen)]
  sys.exit(next((code for code in codes if code), 0))


def ssh(name, flags, plan):
  # As gcloud and ssh do: taken apart at spaces, put together, to the shell.
  command = ' '.join(flags.get('--command', 'echo a shell').split(' '))

  def act(home):
    environment = {**os.environ, 'HOME': str(home)}
    return subprocess.run(
      ['bash', '-c', command],
      cwd=home,
      env=environment,
      stdin=subprocess.DEVNULL,
    ).returncode

  on_workers(name, flags, act, plan)


def scp(source, target, flags, plan):
  name, _, folder = target.partition(':')
  assert not folder and '--recurse' in flags

  def act(home):
    source_path = pathlib.Path(source)
    shutil.copytree(source_path, home / source_path.name, dirs_exist_ok=True)
    return 0

  on_workers(name, flags, act, plan)


def main(arguments):
  if arguments[0] == 'preempt':
    return preempt(arguments[1])
  with (ROOT / 'calls').open('a') as file:
    file.write(json.dumps(arguments) + '\n')
  if arguments[:2] == ['storage', 'rsync']:  # On a worker.
    return (pathlib.Path(arguments[-1]) / 'copied').write_text(arguments[-2])
  assert arguments[:2] == ['compute', 'tpus'], arguments
  kind, verb = arguments[2:4]
  words = [a for a in arguments[4:] if not a.startswith('--')]
  given = [a for a in arguments[4:] if a.startswith('--')]
  flags = {a.partition('=')[0]: a.partition('=')[2] for a in given}
  unknown = flags.keys() - set(FLAGS[f'{kind} {verb}'])
  if unknown or '--zone' not in flags:
    fail(2, f'unrecognized arguments: {unknown}')
  plan = planned(verb)
  if plan.startswith('fail'):
    fail(1, plan[5:])
  if verb == 'scp':
    scp(*words, flags, plan)
  elif verb == 'ssh':
    ssh(*words, flags, plan)
  else:
    {'create': create, 'describe': describe, 'delete': delete}[verb](
      kind, *words, flags
    )


main(sys.argv[1:])
