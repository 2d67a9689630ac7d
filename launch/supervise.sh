#!/usr/bin/env bash
# Runs a command, and starts it again after a preemption or a crash.
#
#   launch/supervise.sh [--record=DIR] COMMAND [ARGUMENT]...
#   launch/supervise.sh launch/local.sh --config=FILE.py --workdir=DIR
#
# What becomes of the command's exit code:
#   0, 2, 3, 130   the end: done, refused, broken, interrupted. It would only
#                  happen again, or is wanted.
#   126, 127       the end: there is no such command.
#   75             preempted, everything is saved: started again.
#   anything else  a crash: started again, after a pause that doubles each time.
#                  After RESTART_LIMIT crashes one after the other, each within
#                  RESTART_QUICK seconds of its start, this is the end too.
# SIGTERM and Ctrl-C are passed on; the command has all the time it needs to
# save, and is not started again. The exit code is that of the command's last
# run, 128 + N if signal N killed it.
#
# With --record, DIR holds `lock`, which is locked as long as anything of this
# runs; `pid`, where to send SIGTERM; and in the end `code`, the exit code.
set -euo pipefail
# Job control: the command is a group of its own, so that Ctrl-C reaches it
# through `stop`, once, and is not ignored as it is in other background jobs.
set -m

: "${RESTART_PAUSE:=5}"          # seconds before the first restart
: "${RESTART_PAUSE_LIMIT:=300}"  # the longest pause
: "${RESTART_QUICK:=600}"        # a run of so many seconds was a good one
: "${RESTART_LIMIT:=5}"          # quick crashes in succession

child=
stopped=
signals=0

say() {
  printf 'supervise %(%F %T)T: %s\n' -1 "$*" >&2
}

# Remembers that it was asked to stop, and passes it on. Traps call it.
# shellcheck disable=SC2329
stop() {
  stopped=yes
  signals=$((signals + 1))
  if [[ -n $child ]]; then
    kill -s "$1" "$child" 2>/dev/null || true
  fi
}

# Waits for the child, however many signals come meanwhile, and sets `code`.
wait_for_child() {
  local before
  while :; do
    before=$signals
    code=0
    wait "$child" || code=$?
    # A signal ends `wait` early, and the code is then that of the signal.
    if ((signals == before)); then
      child=
      return
    fi
  done
}

run() {
  # It must not wait for a terminal: nobody is there.
  "$@" </dev/null &
  child=$!
  if [[ -n $stopped ]]; then  # In the moment before `child` was known.
    kill -s TERM "$child" 2>/dev/null || true
  fi
  wait_for_child
}

pause() {
  sleep "$1" &
  # A signal ends the wait, but not what was waited for.
  wait $! || kill $! 2>/dev/null || true
}

is_the_end() {
  case $code in
    0 | 2 | 3 | 126 | 127 | 130) return 0 ;;
  esac
  [[ -n $stopped ]]
}

# Runs the command until it ends for good, and sets `code`.
supervise() {
  local began crashes=0 pause=$RESTART_PAUSE
  while :; do
    began=$SECONDS
    run "$@"
    if is_the_end; then
      return
    fi
    if ((code == 75 || SECONDS - began >= RESTART_QUICK)); then
      crashes=0
      pause=$RESTART_PAUSE
    fi
    if ((code != 75)); then
      crashes=$((crashes + 1))
    fi
    if ((crashes >= RESTART_LIMIT)); then
      say "exit code $code; the last $crashes runs were short: giving up"
      return
    fi
    say "exit code $code; starting again in $pause s"
    pause "$pause"
    if [[ -n $stopped ]]; then
      code=75  # What was saved before the crash is there to go on from.
      return
    fi
    if ((code != 75)); then
      pause=$((2 * pause))
      pause=$((pause < RESTART_PAUSE_LIMIT ? pause : RESTART_PAUSE_LIMIT))
    fi
  done
}

# Locks the folder for this process and all that it starts.
begin_record() {
  mkdir -p "$1"
  exec 9>"$1/lock"
  # Those who look whether it is locked hold it for a moment.
  if ! flock --timeout 2 9; then
    say "another command runs under $1 already"
    exit 2
  fi
  rm -f "$1/code"
  echo $$ >"$1/pid"
}

main() {
  local record='' code
  case ${1-} in
    --record=*)
      record=${1#--record=}
      shift
      ;;
    -h | --help | '')
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
      exit $(($# ? 0 : 2))
      ;;
  esac
  if [[ -n $record ]]; then
    begin_record "$record"
  fi
  trap 'stop TERM' TERM
  trap 'stop INT' INT
  supervise "$@"
  if [[ -n $record ]]; then
    echo "$code" >"$record/code"
  fi
  say "the end, exit code $code"
  exit "$code"
}

main "$@"
