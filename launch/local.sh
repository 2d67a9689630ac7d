#!/usr/bin/env bash
# Trains on this machine; all it needs is Python 3.11 and a package index.
#
#   launch/local.sh
#     trains the first model, configs/digits.py, in runs/digits
#   launch/local.sh --config=configs/F.py[:VARIANT] --workdir=DIR \
#     [--config.section.key=VALUE]...
#     trains another one; everything is passed on to `python -m vit_jax.train`
#
# Paths that are given count from where you are.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

config=
workdir=
for argument in "$@"; do
  case $argument in
    --config | --config=*) config=given ;;
    --workdir | --workdir=*) workdir=given ;;
  esac
done
if [[ -z $config ]]; then
  # Another experiment needs a folder of its own, and a name from its owner.
  if [[ -z $workdir ]]; then
    set -- "--workdir=$checkout/runs/digits" "$@"
  fi
  set -- "--config=$checkout/configs/digits.py" "$@"
fi

install_package ''
exec "$venv/bin/python" -m vit_jax.train "$@"
