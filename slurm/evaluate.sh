#!/usr/bin/env bash
# Score a checkpoint: sbatch slurm/evaluate.sh [validate|test] --run runs/NAME [arguments]
#
#   sbatch --dependency=afterok:JOB slurm/evaluate.sh --run runs/seg_ade20k      (when JOB is done)
#SBATCH --job-name=gmf-evaluate
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=2:00:00
#SBATCH --requeue
set -euo pipefail

# sbatch runs a copy of this file; the original's place is known to Slurm.
job=$(scontrol show job "$SLURM_JOB_ID")
script=${job#*Command=} script=${script%%[[:space:]]*}
# shellcheck source=slurm/common.sh
source "$(dirname "$script")/common.sh"

verb=validate
if [[ ${1:-} == validate || ${1:-} == test ]]; then verb=$1 && shift; fi
begin
stage
run "$verb" "$@" && code=0 || code=$?
finish "$code"
