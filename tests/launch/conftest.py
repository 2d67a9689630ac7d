"""Signals for scripts, whoever has started the tests."""

import signal

import pytest


@pytest.fixture(autouse=True)
def ctrl_c():
  """Undoes that a shell ignores Ctrl-C for what it starts in the background.

  What is ignored stays so in the programs that tests start, and bash cannot
  trap it there.
  """
  before = signal.getsignal(signal.SIGINT)
  if before is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)
