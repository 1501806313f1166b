#!/usr/bin/env bash
# A table of jobs as a Slurm array of eight tasks with a GPU each:
#
#     sbatch docs/cluster/slurm.sh jobs.csv videos/ --batch 32 --steps 500
#
# The same command goes on with what is not done. The folder must be on a disk that all
# machines share, and `leaps-jax` on PATH where the command is given.
#SBATCH --job-name=leaps
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
set -euo pipefail
table=$1 out=$2
# exec: the signal before the time is up reaches the command, which then ends in order.
exec leaps-jax synthesize --jobs "$table" --out "$out" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "${@:3}"
