#!/usr/bin/env bash
# One run for each line of a file: sbatch --array 0-4 slurm/sweep.sh FILE [arguments for all]
#
#   sbatch --array 0-4 slurm/sweep.sh configs/sweeps/backbones.txt
#   sbatch --array 0-4%2 ...      (two at a time)
#
# Lines hold arguments of fit, quoted as in a shell; empty ones and comments (#) do not count.
#SBATCH --job-name=gmf-sweep
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
trap 'warned=1' USR1

# sbatch runs a copy of this file; the original's place is known to Slurm.
job=$(scontrol show job "$SLURM_JOB_ID")
script=${job#*Command=} script=${script%%[[:space:]]*}
# shellcheck source=slurm/common.sh
source "$(dirname "$script")/common.sh"

[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "submit with --array: sbatch --array 0-4 slurm/sweep.sh FILE"
[ -f "${1:-}" ] || fail "no file of runs ${1:-}: sbatch --array 0-4 slurm/sweep.sh FILE"
mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "$1")
((SLURM_ARRAY_TASK_ID < ${#lines[@]})) || fail "--array: $1 has lines 0 to $((${#lines[@]} - 1))"
mapfile -t words < <(xargs -n 1 printf '%s\n' <<<"${lines[SLURM_ARRAY_TASK_ID]}")
train "${words[@]}" "${@:2}"
