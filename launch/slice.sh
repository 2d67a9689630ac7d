# shellcheck shell=bash
# A slice of TPU VMs as launch/tpu_vm.sh sees it: asked for, looked at, deleted,
# and what runs on its workers. To be sourced.
#
# Uses the options that tpu_vm.sh has read, by their names; `checkout`, where
# this lies; `memory`, a folder for what is kept of this slice; and `scratch`,
# one for temporary files.
# shellcheck disable=SC2034,SC2154

# Slices with this label were created here, and may be deleted.
label=managed_by
owner=vit_jax

# What there is on each worker, in the home of its user.
remote=vit_jax_launch

say() {
  printf '%s\n' "$*" >&2
}

refuse() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints a command as it could be typed.
show() {
  local word line=()
  for word; do
    if [[ $word =~ ^[[:alnum:]_/.:=@%+,-]+$ ]]; then
      line+=("$word")
    else
      line+=("${word@Q}")
    fi
  done
  printf '%s\n' "${line[*]}"
}

run() {
  if [[ -n $dry_run ]]; then
    show "$@"
  else
    "$@"
  fi
}

# Prints the software that a type of TPU is created with, see
# https://cloud.google.com/tpu/docs/runtimes.
runtime() {
  case $1 in
    v[234]-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      refuse "--type=$1 is not known: expected v2-N, v3-N, v4-N," \
        'v5litepod-N, v5p-N or v6e-N, such as v3-8 or v5litepod-16. Newer' \
        'ones are not served by this interface of Google Cloud.'
      ;;
  esac
}

# Sets `place`, the options that every command about the slice ends with.
locate() {
  place=("--zone=$zone")
  if [[ -n $project ]]; then
    place+=("--project=$project")
  fi
}

create_slice() {
  local version options
  version=$(runtime "$type") || return
  options=("${place[@]}" "--accelerator-type=$type" "--labels=$label=$owner")
  if [[ -n $spot ]]; then
    options+=(--spot)
  fi
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources create "$name" \
      "--node-id=$name" "--runtime-version=$version" "${options[@]}"
  else
    run gcloud compute tpus tpu-vm create "$name" \
      "--version=$version" "${options[@]}"
  fi
}

# Deletes the slice, if it is one that may be deleted.
delete_slice() {
  if [[ $label_found != "$owner" && -z $yes ]]; then
    refuse "the slice $name was not created by this script (it does not have" \
      "the label $label=$owner), so it is not deleted. If you mean it, give" \
      '--yes.'
  fi
  if [[ -n $queued ]]; then
    run gcloud compute tpus queued-resources delete "$name" "${place[@]}" \
      --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

# Sets `answer` to the state and the label of a kind of resource, and to
# nothing if there is no such resource. Fails if this cannot be known.
describe() {
  if answer=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" \
    "--format=value($2)" 2>"$scratch/error"); then
    return
  fi
  if grep --quiet NOT_FOUND "$scratch/error"; then
    answer=
    return
  fi
  cat "$scratch/error" >&2
  return 1
}

queue_format="state.state,tpu.nodeSpec[0].node.labels.$label"
node_format="state,labels.$label"

# Sets `situation` to what can be done with the slice, `state` to what Google
# Cloud calls it, and `label_found`.
#   none     there is no slice
#   waiting  it comes, goes, or is busy with itself
#   ready    its workers can be used
#   lost     it was preempted or broke: only good to be deleted
#   halted   somebody stopped it
look() {
  if [[ -n $dry_run ]]; then
    pretend
    return
  fi
  state=
  if [[ -n $queued ]]; then
    describe queued-resources "$queue_format" || return
    read -r state label_found <<<"$answer" || true
    case $state in
      ACTIVE) ;;
      '') situation=none && return ;;
      FAILED | SUSPENDED) situation=lost && return ;;
      *) situation=waiting && return ;;
    esac
  fi
  describe tpu-vm "$node_format" || return
  if [[ -z $answer && -n $queued ]]; then
    situation=waiting
    return
  fi
  read -r state label_found <<<"$answer" || true
  case $state in
    '') situation=none ;;
    READY) situation=ready ;;
    PREEMPTED | TERMINATED | UNKNOWN) situation=lost ;;
    STOPPED | HIDDEN) situation=halted ;;
    *) situation=waiting ;;
  esac
}

# With --dry-run: shows what `look` asks, and takes the next expected answer.
pretend() {
  if [[ -n $queued ]]; then
    show gcloud compute tpus queued-resources describe "$name" \
      "${place[@]}" "--format=value($queue_format)"
  fi
  if [[ -z $queued || ${pretended[0]} == ready ]]; then
    show gcloud compute tpus tpu-vm describe "$name" "${place[@]}" \
      "--format=value($node_format)"
  fi
  situation=${pretended[0]}
  state=$situation
  label_found=$owner
  if ((${#pretended[@]} > 1)); then
    pretended=("${pretended[@]:1}")
  fi
}

# Says what Google Cloud calls the situation, where that is new.
tell() {
  if [[ $state != "${told-}" ]]; then
    say "The slice $name is $state."
    told=$state
  fi
}

# Runs a line of shell on a worker, or on 'all' of them at once.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" \
    "--command=$2"
}

# Calls worker.sh there; its arguments arrive as they are.
call_workers() {
  local which=$1
  shift
  on_workers "$which" "bash $remote/worker.sh$(printf ' %q' "$@")"
}

# Sets `workers` to the states of all workers, as worker.sh tells them.
ask_workers() {
  local script="$remote/worker.sh"
  script="if test -e $script; then bash $script status; else echo absent; fi"
  if [[ -n $dry_run ]]; then
    on_workers all "$script"
    workers=('ended 0')
    return
  fi
  on_workers all "$script" >"$scratch/workers" 2>"$scratch/error" || {
    cat "$scratch/error" >&2
    return 1
  }
  mapfile -t workers <"$scratch/workers"
}

# Prints the git tree of what is sent: of the last commit, or with --dirty of
# all files that git does not ignore.
tree_to_send() {
  if [[ -z $(git -C "$checkout" status --porcelain) ]]; then
    git -C "$checkout" rev-parse 'HEAD^{tree}'
  elif [[ -n $dirty ]]; then
    export GIT_INDEX_FILE=$scratch/index
    git -C "$checkout" add --all
    git -C "$checkout" write-tree
  else
    git -C "$checkout" status --short >&2
    refuse 'these files are not committed, so nobody could tell later what' \
      'was run. Commit them, or give --dirty to send them as they are.'
  fi
}

# Prints the versions of the packages that were tested here.
pinned_packages() {
  if [[ ! -x $checkout/.venv/bin/python ]]; then
    say 'Versions of packages are not pinned, as there is no .venv here;' \
      'launch/test.sh makes one.'
    return
  fi
  "$checkout/.venv/bin/python" -m pip freeze --exclude-editable |
    grep '^[[:alnum:]._-]*==' | grep -v '^\(pip\|setuptools\|wheel\)==' || true
}

# Packs what `set_up` sends. It stays here, for slices that come later.
pack() {
  local tree commit folder=$memory/$remote
  tree=$(tree_to_send)
  commit=$(git -C "$checkout" rev-parse HEAD)
  if [[ $tree != "$(git -C "$checkout" rev-parse 'HEAD^{tree}')" ]]; then
    commit+="-with-changes-${tree:0:10}"
  fi
  if [[ -n $dry_run ]]; then
    return
  fi
  mkdir -p "$folder"
  git -C "$checkout" archive --format=tar.gz "$tree" >"$folder/code.tar.gz"
  echo "$commit" >"$folder/commit"
  pinned_packages >"$folder/constraints.txt"
  cp "$here/worker.sh" "$folder"
}

# Puts the packed checkout on all workers, and installs it.
set_up() {
  run gcloud compute tpus tpu-vm scp --recurse "$memory/$remote" "$name:" \
    "${place[@]}" --worker=all || return
  call_workers all install || return
  if [[ -n $data ]]; then
    call_workers all "${copy_data:-mount}" "${data#gs://}"
  fi
}

# Shows what is new in the log of worker 0, and remembers where it ends.
show_log() {
  if [[ -n $dry_run ]]; then
    call_workers 0 log "$log_end"
    return
  fi
  call_workers 0 log "$log_end" >"$scratch/log" 2>"$scratch/error" || {
    cat "$scratch/error" >&2
    return 1
  }
  {
    read -r log_end
    cat
  } <"$scratch/log"
}
