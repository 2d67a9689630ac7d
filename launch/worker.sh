#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a slice; not to be called by
# hand. It lies in a folder of its own, with everything that it needs and makes:
#
#   code.tar.gz, commit  the checkout that was sent, and its name
#   constraints.txt      versions of Python packages, may be empty
#   code/                that checkout, with its packages in .venv
#   run/                 arguments, lock, pid, log and exit code of the training
#   data/                what `mount` or `copy` got from Cloud Storage
#
#   worker.sh install            installs the checkout, unless it is there
#   worker.sh mount BUCKET[/DIR] mounts it on data/, read only
#   worker.sh copy BUCKET[/DIR]  copies to data/ what is not there yet
#   worker.sh start ARGUMENT...  trains, until the end; see supervise.sh
#   worker.sh stop               ends the training, which saves first
#   worker.sh status             one line: STATE CODE COMMIT HOST
#   worker.sh log OFFSET         size of the log; then what is new since OFFSET
#   worker.sh follow             the log, as it grows
#
# Everything may be called twice, as a connection that breaks is tried again.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
code=$home/code
run=$home/run

limit=16384  # bytes of the log in one answer

fail() {
  echo "error: $(hostname): $*" >&2
  exit 2
}

running() {
  [[ -e $run/lock ]] && ! flock --shared --nonblock "$run/lock" true
}

installed() {
  [[ -f $code/COMMIT && $(<"$code/COMMIT") == "$(<"$home/commit")" ]]
}

# Puts the checkout there; packages and compiled programs of the last one stay.
unpack() {
  mkdir -p "$code"
  find "$code" -mindepth 1 -maxdepth 1 \
    ! -name .venv ! -name .cache -exec rm -rf {} +
  tar -xzf "$home/code.tar.gz" -C "$code"
}

# The images of TPU VMs come with a Python that is too old.
provide_python() {
  export PATH="$HOME/.local/bin:$PATH"
  if find_python >/dev/null 2>&1; then
    return
  fi
  python3 -m pip install --quiet --user uv
  uv python install --quiet 3.12
}

# The same versions wherever and whenever a worker is installed.
pin_packages() {
  local before="$code/.venv/constraints.txt"
  export PIP_CONSTRAINT="$home/constraints.txt"
  if ! cmp --silent "$PIP_CONSTRAINT" "$before"; then
    rm -f "$code/.venv/installed"*
  fi
}

install() {
  if running; then
    installed || fail 'another checkout is training here: stop it first'
    return
  fi
  if ! installed; then
    unpack
  fi
  # shellcheck source=launch/environment.sh
  source "$code/launch/environment.sh"
  provide_python
  pin_packages
  install_package '[tpu,gcs,tfds]'
  cp "$PIP_CONSTRAINT" "$code/.venv/constraints.txt"
  cp "$home/commit" "$code/COMMIT"
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  local source=https://packages.cloud.google.com/apt
  curl --silent --show-error --fail "$source/doc/apt-key.gpg" |
    sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new machine may still be busy with its own updates.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse
}

copy_data() {
  mkdir -p "$home/data"
  gcloud storage rsync --recursive "gs://$1" "$home/data"
}

mount_data() {
  local bucket=${1%%/*} folder=()
  if [[ $1 == */* ]]; then
    folder=(--only-dir "${1#*/}")
  fi
  if mountpoint --quiet "$home/data"; then
    return
  fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  mkdir -p "$home/data"
  gcsfuse -o ro --implicit-dirs "${folder[@]}" "$bucket" "$home/data"
}

start() {
  mkdir -p "$run"
  if running; then
    # Both have to be there, and be the same to the byte.
    printf '%s\0' "$@" | cmp --silent - "$run/arguments" ||
      fail 'another run is going on: stop it first'
    return
  fi
  printf '%s\0' "$@" >"$run/arguments"
  rm -f "$run/stopped" "$run/code"
  if [[ -s $run/log ]]; then
    mv "$run/log" "$run/log.before"
  fi
  cd "$code"
  # shellcheck source=launch/environment.sh
  source launch/environment.sh
  # Else JAX would train on the CPU where it finds no TPU.
  export JAX_PLATFORMS=${JAX_PLATFORMS-tpu,cpu}
  # A session of its own outlives the connection.
  setsid nohup launch/supervise.sh --record="$run" \
    "$venv/bin/python" -m vit_jax.train "$@" </dev/null >"$run/log" 2>&1 &
  for ((tries = 0; tries < 100; tries++)); do
    if running || [[ -f $run/code ]]; then
      return
    fi
    sleep 0.1
  done
  fail "the supervisor did not start: $(<"$run/log")"
}

stop() {
  mkdir -p "$run"
  touch "$run/stopped"
  if running; then
    kill -s TERM "$(<"$run/pid")" || fail 'its supervisor was killed'
  fi
  for ((second = 0; second < 600; second++)); do
    running || return 0
    sleep 1
  done
  fail 'still saving after ten minutes; ask again, or delete the slice'
}

# Prints what is known of the training:
#   absent         nothing is installed, or something else
#   idle           nothing was started
#   running        it goes on
#   ended CODE     the end, see supervise.sh
#   stopped        ended by `stop`
#   dead           ended with its machine, or by another hand
state() {
  if running; then
    echo running -
  elif ! installed; then
    echo absent -
  elif [[ ! -f $run/arguments ]]; then
    echo idle -
  elif [[ -f $run/stopped ]]; then
    echo stopped -
  elif [[ -f $run/code && $(<"$run/code") != 75 ]]; then
    echo ended "$(<"$run/code")"
  else
    echo dead -
  fi
}

log() {
  local size new
  size=$(stat --format=%s "$run/log" 2>/dev/null || echo 0)
  echo "$size"
  # A shorter log is another one.
  new=$((size < $1 ? size : size - $1))
  if ((new > 0)); then
    head -c "$size" "$run/log" | tail -c $((new < limit ? new : limit))
  fi
}

follow() {
  [[ -f $run/log ]] || fail 'no training was started here'
  if running; then
    tail -n 100 -F --pid="$(<"$run/pid")" "$run/log"
  else
    tail -n 100 "$run/log"
  fi
}

main() {
  local action=$1
  shift
  case $action in
    install) install ;;
    mount) mount_data "$1" ;;
    copy) copy_data "$1" ;;
    start) start "$@" ;;
    stop) stop ;;
    log) log "$1" ;;
    follow) follow ;;
    status) echo "$(state) $(<"$home/commit") $(hostname)" ;;
    *) fail "there is no action '$action'" ;;
  esac
}

# Read to the end before it starts, as the next version may come meanwhile.
main "$@"; exit
