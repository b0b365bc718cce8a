#!/usr/bin/env bash
# Train one backbone on several data sets at once: sbatch [--nodes N] slurm/multitask.sh [arguments]
#
# As train.sh, with configs/multitask.yaml and four nodes.
#SBATCH --job-name=gmf-multitask
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
trap 'warned=1' USR1

# sbatch runs a copy of this file; the original's place is known to Slurm.
job=$(scontrol show job "$SLURM_JOB_ID")
script=${job#*Command=} script=${script%%[[:space:]]*}
# shellcheck source=slurm/common.sh
source "$(dirname "$script")/common.sh"

train --config multitask "$@"
