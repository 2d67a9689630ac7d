"""A training run in a process of its own that can be told to die.

  python killed.py WORKDIR MOMENT CONFIG.json

MOMENT: 'after:6' kills it after step 6, 'saving:8' right after the save of
step 8 was begun, 'saving:8:0.05' a little later; 'never' lets it finish.
"""

import json
import os
import pathlib
import signal
import sys
import threading

import jax

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)

from rich.console import Console  # noqa: E402

from vit_jax import config  # noqa: E402
from vit_jax.training import checkpoint, loop, schema  # noqa: E402
from vit_jax.training import run as run_lib  # noqa: E402


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def arm(moment):
  what, _, rest = moment.partition(':')
  if what == 'never':
    return
  step, _, delay = rest.partition(':')
  owner, name = {
    'after': (loop._Loop, 'after_step'),
    'saving': (checkpoint.Checkpoints, 'save'),
  }[what]
  original = getattr(owner, name)

  def wrapped(self, *args, **kwargs):
    result = original(self, *args, **kwargs)
    now = args[1] if what == 'after' else args[0]
    if now == int(step):
      threading.Timer(float(delay), die).start() if delay else die()
    return result

  setattr(owner, name, wrapped)


def main():
  workdir, moment, path = sys.argv[1:]
  arm(moment)
  said = json.loads(pathlib.Path(path).read_text())
  resolved = config.resolve(said, [], schema.SCHEMA)
  run = run_lib.prepare(resolved, jax.devices()[:1])
  loop.train(run, pathlib.Path(workdir), Console(file=sys.stderr))


if __name__ == '__main__':
  main()
