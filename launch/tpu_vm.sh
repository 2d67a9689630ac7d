#!/usr/bin/env bash
# Trains on Cloud TPU VMs, and keeps training when they are taken away.
#
#   launch/tpu_vm.sh COMMAND --name=NAME [OPTION]... [-- ARGUMENT]...
#
# Commands:
#   create   asks for a slice of TPU VMs, and waits for it
#   setup    installs this checkout on every worker of the slice
#   train    does all of it: creates the slice unless there is one, sets it up,
#            starts the training on all workers, and watches over it to the
#            end. A slice that is preempted is created again, and the training
#            goes on from its last checkpoint. Ctrl-C ends the watch only.
#   resume   watches again over the last training of that name
#   stop     ends the training, which saves first; `resume` goes on
#   status   shows the slice, and what its workers do
#   logs     follows the log of a worker
#   ssh      opens a shell on a worker, or runs what follows --
#   delete   deletes the slice
#
# Options:
#   --name=NAME        of the slice
#   --zone=ZONE        such as europe-west4-a
#   --type=TYPE        v3-8, v3-32, v4-8, v5litepod-16, v5p-8, v6e-8, ...
#   --project=PROJECT  of Google Cloud; as gcloud is configured by default
#   --spot             cheaper, and may be taken away at any time
#   --queued           waits in the queue where there is no capacity now
#   --workdir=gs://... of the run: checkpoints, metrics, report
#   --data=gs://...    mounted on the workers as ../data, read only
#   --copy-data        copies it to their disks instead
#   --delete-after     deletes the slice when the training ends, well or not
#   --dirty            sends what is not committed too
#   --worker=N         for logs and ssh: 0 by default, or all
#   --yes              deletes a slice even if this script did not create it
#   --dry-run          prints every command and does nothing; what is asked on
#                      the way is taken to be answered as usual
#
# After --, `train` takes what `python -m vit_jax.train` takes, but --workdir:
#
#   launch/tpu_vm.sh train --name=vit --zone=europe-west4-a --type=v3-8 --spot \
#     --workdir=gs://BUCKET/vit -- --config=configs/vit_imagenet.py:B/16
#
# Options are remembered by name: later commands need no more than --name,
# unless they describe another slice by --type.
#
# Exit codes: 0 done; 1 Google Cloud failed; 2 refused; else that of the
# training, see launch/supervise.sh. Needs bash 4.4, git and gcloud.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: this needs bash 4.4 or newer, and is run by $BASH_VERSION." \
    'On macOS: brew install bash.' >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
checkout=$(dirname "$here")
# shellcheck source=launch/slice.sh
source "$here/slice.sh"

: "${TPU_VM_POLL:=30}"      # seconds between two looks
: "${TPU_VM_PATIENCE:=10}"  # failures of Google Cloud in succession

name='' zone='' type='' project='' workdir='' data='' worker=0
spot='' queued='' copy_data='' delete_after='' dirty='' yes='' dry_run=''
arguments=()  # after --, given now or remembered

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
}

read_options() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --data=*) data=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --spot) spot=yes ;;
      --queued) queued=yes ;;
      --copy-data) copy_data=copy ;;
      --delete-after) delete_after=yes ;;
      --dirty) dirty=yes ;;
      --yes) yes=yes ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        arguments=("$@")
        return
        ;;
      *)
        refuse "there is no option '$1'. Values follow a '=', as in" \
          "--name=NAME, and arguments of the training follow '--'; --help" \
          'has the list.'
        ;;
    esac
    shift
  done
}

# Reads the options, and before them those that are remembered. What `ssh` runs
# is never remembered: `shell_line`.
read_all_options() {
  local remembered=()
  read_options "$@"
  shell_line=${arguments[*]}
  [[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
    refuse "--name='$name' is no name of a slice: expected small letters," \
      'digits and dashes, such as --name=vit-b16.'
  memory=$checkout/.cache/launch/$name
  if [[ -z $type && -f $memory/options ]]; then
    mapfile -d '' -t remembered <"$memory/options"
    read_options "${remembered[@]}"
    read_options "$@"
  fi
  [[ -n $zone ]] || refuse "--zone is missing, such as --zone=europe-west4-a."
  locate
}

remember() {
  local options=("--zone=$zone" "--type=$type")
  if [[ -n $project ]]; then options+=("--project=$project"); fi
  if [[ -n $workdir ]]; then options+=("--workdir=$workdir"); fi
  if [[ -n $data ]]; then options+=("--data=$data"); fi
  if [[ -n $spot ]]; then options+=(--spot); fi
  if [[ -n $queued ]]; then options+=(--queued); fi
  if [[ -n $copy_data ]]; then options+=(--copy-data); fi
  if [[ -n $delete_after ]]; then options+=(--delete-after); fi
  if [[ -z $dry_run ]]; then
    mkdir -p "$memory"
    printf '%s\0' "${options[@]}" -- "${arguments[@]}" >"$memory/options"
  fi
}

check_training() {
  local argument config=''
  [[ $workdir == gs://?* ]] ||
    refuse "--workdir='$workdir' is not on Cloud Storage: a slice can vanish" \
      'with its disks. Expected --workdir=gs://BUCKET/FOLDER.'
  [[ -z $data || $data == gs://?* ]] ||
    refuse "--data='$data' is not on Cloud Storage: expected" \
      '--data=gs://BUCKET/FOLDER.'
  for argument in "${arguments[@]}"; do
    case $argument in
      --config=*) config=given ;;
      --workdir*) refuse "write --workdir before the '--'." ;;
    esac
  done
  [[ -n $config ]] ||
    refuse "after '--', --config=FILE.py is missing: what to train."
}

# Waits until the slice is ready. Fails if it cannot be created.
wait_for_slice() {
  while look; do
    case $situation in
      ready) return ;;
      none) create_slice || return ;;
      lost) refuse "the slice $name is $state: delete it, or use resume." ;;
      halted) refuse "the slice $name is $state: start it, or delete it." ;;
      waiting)
        tell
        sleep "$TPU_VM_POLL"
        ;;
    esac
  done
  return 1
}

# Sets `outcome` to the exit code of the training on all workers, if it has
# ended. Fails if there is a worker that does not train.
judge_workers() {
  local line state code verdict=0 training=''
  for line in "${workers[@]}"; do
    read -r state code _ <<<"$line"
    case $state in
      ended)
        # That of a worker which had its own reasons tells most.
        if ((verdict == 0 || code == 2 || code == 3)); then verdict=$code; fi
        ;;
      stopped) verdict=75 ;;
      running) training=yes ;;
      *) return 1 ;;
    esac
  done
  if ((verdict != 0)) || [[ -z $training ]]; then
    outcome=$verdict
  fi
}

# Sets everything up, and starts what does not run.
start_training() {
  set_up || return
  call_workers all start "--workdir=$workdir" "${arguments[@]}" || return
  started=yes
  ask_workers && judge_workers
}

# Takes one look at the workers, and sees to it that they train.
tend() {
  if [[ -z $started ]]; then
    start_training || return
  else
    ask_workers || return
    judge_workers || start_training || return
  fi
  show_log
}

# Takes one step towards the end of the training; sets `outcome` there.
advance() {
  outcome=
  look || return
  case $situation in
    none)
      log_end=0
      create_slice
      ;;
    lost)
      say "The slice $name is $state; it is created again."
      delete_slice
      ;;
    ready) tend ;;
    halted) refuse "the slice $name is $state: start it, or delete it." ;;
    waiting) tell ;;
  esac
}

# Trains until the end, whatever becomes of the slice on the way.
keep_training() {
  local failures=0 status
  started='' log_end=0 outcome='' situation=''
  while [[ -z $outcome ]]; do
    status=0
    advance || status=$?
    if ((status == 2)); then
      return 2
    elif ((status == 0)); then
      failures=0
    elif [[ $situation == none && -n $patient ]]; then
      say 'Trying again until there is capacity.'
    elif [[ $situation == none ]] || ((++failures == TPU_VM_PATIENCE)); then
      say "Google Cloud failed (exit code $status). If there is a slice, it" \
        "costs money until: launch/tpu_vm.sh delete --name=$name"
      return 1
    fi
    if [[ -n $started ]]; then
      patient=yes  # What was created once can be created again.
    fi
    if [[ -z $outcome && ! ($status == 0 && $situation =~ none|lost) ]]; then
      run sleep "$TPU_VM_POLL"
    fi
  done
}

# Trains, and says how it ended.
train() {
  # Wherever the errors of the command that it interrupts would go.
  exec 3>&2
  trap 'say "Nobody watches now, and what was started goes on. Watch again" \
    "by: launch/tpu_vm.sh resume --name=$name" 2>&3; exit 130' INT
  keep_training || return
  if ((outcome != 0 && outcome != 75)); then
    say "The training ended with exit code $outcome:"
    call_workers all stop || true
    call_workers all follow || true
  elif ((outcome == 0)); then
    say 'The training is done.'
  fi
  if [[ -n $delete_after ]]; then
    delete_slice
  else
    say "The slice costs money until: launch/tpu_vm.sh delete --name=$name"
  fi
  return "$outcome"
}

show_status() {
  look
  say "slice $name: $situation${state:+ ($state)}"
  if [[ $situation == ready ]]; then
    ask_workers
    printf '%s\n' "${workers[@]}"
  fi
}

open_shell() {
  if [[ -n $shell_line ]]; then
    on_workers "$worker" "$shell_line"
  else
    run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$worker"
  fi
}

delete() {
  look
  if [[ $situation == none ]]; then
    say "There is no slice $name in $zone."
    return
  fi
  delete_slice
}

main() {
  local action=${1-}
  case $action in
    create | setup | train | resume | stop | status | logs | ssh | delete) ;;
    -h | --help | help) usage && exit ;;
    '') usage >&2 && exit 2 ;;
    *) refuse "there is no command '$action'; --help has the list." ;;
  esac
  shift
  command -v gcloud >/dev/null ||
    refuse 'there is no gcloud: see https://cloud.google.com/sdk/docs/install.'
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  read_all_options "$@"
  pretended=(ready)
  patient=
  case $action in
    create)
      runtime "$type" >/dev/null
      pretended=(none ready)
      remember
      wait_for_slice
      ;;
    setup)
      pack
      set_up
      ;;
    train)
      runtime "$type" >/dev/null
      check_training
      pack
      remember
      pretended=(none ready)
      train
      ;;
    resume)
      check_training
      pretended=(lost none ready)
      patient=yes
      train
      ;;
    stop) call_workers all stop ;;
    status) show_status ;;
    logs) call_workers "$worker" follow ;;
    ssh) open_shell ;;
    delete) delete ;;
  esac
}

main "$@"; exit
