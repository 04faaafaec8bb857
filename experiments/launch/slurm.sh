#!/bin/bash
# Trains on the nodes of a SLURM cluster, a process for every GPU; the arguments are those of train.py:
#
#     sbatch --nodes=2 experiments/launch/slurm.sh --gin_file=gin/scaling/1300m_rec.gin \
#         --gin_file=gin/meshes/h100_2x8.gin --gin.data.path=/shared/pg19 --workdir=/shared/runs/1300m
#
#SBATCH --job-name=block_recurrent
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Every process sees all GPUs of its node and takes the one of its number; --gpus-per-task would hide
# the others, without which they cannot talk. SIGTERM comes two minutes before the time is up: the run is
# saved, and the job goes on from there when it is queued again.

srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" experiments/train.py --multiprocess "$@"
status=$?
if [ "$status" -eq 143 ] && [ -n "$SLURM_JOB_ID" ]; then # stopped, and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
