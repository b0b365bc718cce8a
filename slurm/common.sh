# shellcheck shell=bash
# What the job scripts beside this file share; they source it.

# `script` is the place of the one that does.
: "${script:?}"
CODE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for settings in "${GMF_SITE:-$HOME/.config/gmf_platform/site.env}" "$CODE/slurm/site.env"; do
  # shellcheck source=slurm/site.env
  if [ -f "$settings" ]; then source "$settings"; fi
done

readonly SUCCESS=0 WRONG_INPUT=2 REQUEUE=75        # gmf_platform/errors.py
readonly KILLED_BY_WARNING=$((128 + $(kill -l USR1))) # it came before Python could hear it

warned=${warned:-0} step="" next=""
# Slurm warns this script, which passes it on to all processes.
trap 'warned=1; pass_on' USR1

# train ARGUMENTS: what train.sh, multitask.sh and sweep.sh do.
train() {
  begin
  chain "$@"
  stage
  local code=$SUCCESS
  if ((PREFLIGHT)); then run preflight "$@" || code=$?; fi
  if ((code == SUCCESS && warned)); then code=$REQUEUE; fi
  if ((code == SUCCESS)); then run fit "$@" || code=$?; fi
  finish "$code"
}

fail() {
  echo "$(basename "$script"): $*" >&2
  exit "$WRONG_INPUT"
}

# Check the allocation, and set what all processes need.
begin() {
  : "${SLURM_NTASKS_PER_NODE:?submit with --ntasks-per-node}"
  : "${SLURM_CPUS_PER_TASK:?submit with --cpus-per-task}"
  local gpus=${SLURM_GPUS_ON_NODE:-$SLURM_NTASKS_PER_NODE}
  ((gpus == SLURM_NTASKS_PER_NODE)) ||
    fail "$gpus GPUs a node and $SLURM_NTASKS_PER_NODE tasks: add --ntasks-per-node $gpus"
  logs=$LOGS/$SLURM_JOB_NAME-$SLURM_JOB_ID
  mkdir -p "$logs"
  choose_python
  MASTER_ADDR=${MASTER_ADDR:-$SLURMD_NODENAME} # this script runs on the first node, as rank 0 will
  MASTER_PORT=$(free_port)
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
  export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS GMF_DATA GMF_PRETRAINED
  for name in NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME; do
    if [ -n "${!name}" ]; then export "${name?}"; else unset "$name"; fi
  done
  if [ -d "$CODE/gmf_platform" ]; then export PYTHONPATH=$CODE${PYTHONPATH:+:$PYTHONPATH}; fi
  echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)):" \
    "$SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST) x $SLURM_NTASKS_PER_NODE tasks, logs in $logs"
}

# Set how a step is started (step_options) and what it runs (python) from RUN_WITH.
choose_python() {
  local with=$RUN_WITH
  if [ -z "$with" ]; then
    if [ -d "$CODE/.venv" ]; then with=venv:$CODE/.venv; else with=path; fi
  fi
  local folder mounts=$PWD,$CODE${MOUNTS:+,$MOUNTS}
  for folder in "$GMF_DATA" "$GMF_PRETRAINED" "$STAGE_TO"; do
    if [ -d "$folder" ]; then mounts+=,$folder; fi
  done
  step_options=() python=(python)
  set +u # what is sourced here is not ours
  case $with in
    venv:*)
      # shellcheck source=/dev/null
      source "${with#*:}/bin/activate"
      ;;
    conda:*)
      # shellcheck source=/dev/null
      source "$(conda info --base)/etc/profile.d/conda.sh"
      conda activate "${with#*:}"
      ;;
    apptainer:*) python=(apptainer exec --nv --bind "$mounts" --pwd "$PWD" "${with#*:}" python) ;;
    enroot:*)
      step_options=(--container-image="${with#*:}" --container-workdir="$PWD"
        --container-mounts="$(sed -E 's/([^,]+)/\1:\1/g' <<<"$mounts")")
      ;;
    path) ;;
    *) fail "RUN_WITH: $with is none of venv:, conda:, apptainer:, enroot:, path" ;;
  esac
  set -u
}

# A port of this job: jobs whose numbers are close never try the same one, and one that something
# else listens on is passed over. Below 32768, where the system takes ports for connections.
free_port() {
  local port try
  for try in {0..99}; do
    port=$((12000 + (SLURM_JOB_ID + 7919 * try) % 20000))
    (: <"/dev/tcp/$MASTER_ADDR/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Pass the warning on again and again: srun forgets it while it is starting processes, and they note
# it more than once without harm.
pass_on() {
  local to=$step
  [ -n "$to" ] || return 0
  while kill -USR1 "$to" 2>/dev/null; do sleep 2; done &
}

# run VERB ARGUMENTS: one process a GPU on all nodes; what rank 0 says is in this job's output too.
run() {
  local code begun log=$logs/rank-0.log
  touch "$log"
  begun=$(wc -c <"$log")
  # --wait rather than --kill-on-bad-exit: when one has died, the others still have to say which.
  srun "${step_options[@]}" --ntasks-per-node="$SLURM_NTASKS_PER_NODE" \
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait="$LEAVE_WITHIN" \
    --open-mode=append --output="$logs/rank-%t.log" \
    "${python[@]}" -m gmf_platform "$@" &
  step=$!
  if ((warned)); then pass_on; fi
  tail --pid="$step" --bytes=+$((begun + 1)) -F "$log" 2>/dev/null &
  await "$step" && code=$SUCCESS || code=$?
  step=""
  wait # for tail to have said all
  return "$code"
}

# Unpack archives on all nodes, once on each; nothing is taken for whole that was there before.
stage() {
  [ -n "$STAGE" ] || return 0
  local archives
  read -ra archives <<<"$STAGE"
  staged=$STAGE_TO/gmf-$SLURM_JOB_ID
  export -f unpack
  # shellcheck disable=SC2016
  on_each_node bash -euc 'unpack "$@"' unpack "$staged" "${archives[@]}" ||
    finish $?
  export GMF_DATA=$staged
}

unpack() {
  rm -rf "$1"
  mkdir -p "$1"
  local archive
  for archive in "${@:2}"; do
    case $archive in
      *.zip) unzip -q "$archive" -d "$1" ;;
      *) tar -xf "$archive" -C "$1" ;;
    esac
    echo "$SLURMD_NODENAME: $archive is unpacked in $1"
  done
}

on_each_node() {
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "$@" &
  await $!
}

# Wait for a process: a signal to this script ends a `wait` early.
await() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# Submit the job that goes on when this one ends unfinished, with the same request.
chain() {
  if ((${SLURM_RESTART_COUNT:-0})) && [ -f "$logs/next" ]; then next=$(<"$logs/next"); fi
  if ((CHAIN == 0)) || [ -n "$next" ]; then return; fi
  local options=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node="$SLURM_NTASKS_PER_NODE"
    --cpus-per-task="$SLURM_CPUS_PER_TASK" --partition="$SLURM_JOB_PARTITION"
    --job-name="$SLURM_JOB_NAME" --time="$(squeue --noheader --job "$SLURM_JOB_ID" --format %l)"
    ${SLURM_GPUS_PER_NODE:+--gpus-per-node="$SLURM_GPUS_PER_NODE"}
    ${SLURM_MEM_PER_NODE:+--mem="$SLURM_MEM_PER_NODE"}
    ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"}
    ${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"}
    ${SLURM_JOB_RESERVATION:+--reservation="$SLURM_JOB_RESERVATION"})
  next=$(CHAIN=$((CHAIN - 1)) CHAIN_LINK=$((${CHAIN_LINK:-0} + 1)) \
    CHAIN_FIRST=${CHAIN_FIRST:-$SLURM_JOB_ID} sbatch --parsable \
    --dependency="afternotok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes "${options[@]}" "$script" "$@") || {
    echo "CHAIN: no job could be submitted from this node; this one runs alone" >&2
    return 0
  }
  echo "$next" >"$logs/next"
  echo "job $next goes on if this one ends unfinished"
}

# End the job, or see to it that it goes on.
finish() {
  local code=$1
  if [ -n "${staged:-}" ]; then on_each_node rm -rf "$staged" || true; fi
  if ((code == KILLED_BY_WARNING)); then code=$REQUEUE; fi
  echo "$(date '+%F %T') job $SLURM_JOB_ID ends with code $code"
  if ((code != REQUEUE)); then
    # Slurm itself removes what waits for a failure that does not come.
    if ((code != SUCCESS)) && [ -n "$next" ]; then scancel "$next"; fi
    exit "$code"
  fi
  if [ -z "$next" ]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "$(basename "$script"): the same command goes on" \
      "from here; where requeue is forbidden, CHAIN=N submits N jobs in advance" >&2
  fi
  exit "$code"
}
