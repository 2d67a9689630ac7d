#!/usr/bin/env bash
# Checks style and structure and runs the tests; all it needs is Python 3.11
# and a package index. Arguments are passed on to pytest:
#
#   launch/test.sh
#   launch/test.sh tests/test_configs.py -k folder
#   launch/test.sh -m slow     what takes more than a minute
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_package '[test]'
cd "$checkout"
export PATH="$venv/bin:$PATH"
# Tests simulate their devices on the CPU, whatever else there is.
export JAX_PLATFORMS=cpu

ruff check .
ruff format --check .
lint-imports
shellcheck --external-sources launch/*.sh .ci/run
# Two processes, each with the tests of whole files, so that what a file
# prepares is prepared once. More would only compete for XLA's threads: each
# process uses every core as it is.
exec pytest -n 2 --dist loadscope -m 'not slow and not interop' \
  --durations=10 "$@"
