#!/usr/bin/env bash
# Train on one node or many: sbatch [--nodes N] slurm/train.sh [arguments of fit]
#
#   sbatch slurm/train.sh                                            (trains configs/seg_ade20k.yaml)
#   sbatch --nodes 4 slurm/train.sh --config configs/det_coco_mask_rcnn.yaml --config strategy/fsdp
#
# Pre-empted, out of time, or on a node that fails, the job goes on by itself at the step where it
# was. Options of sbatch on the command line win over those below. See slurm/README.md.
#SBATCH --job-name=gmf-train
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
# One task for each GPU: the next two are equal.
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Told to this script 300 s before the time is up: more than a step and a checkpoint take.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
trap 'warned=1' USR1

# sbatch runs a copy of this file; the original's place is known to Slurm.
job=$(scontrol show job "$SLURM_JOB_ID")
script=${job#*Command=} script=${script%%[[:space:]]*}
# shellcheck source=slurm/common.sh
source "$(dirname "$script")/common.sh"

(($#)) || set -- --config seg_ade20k
train "$@"
