#!/bin/bash
# Trains on all hosts of a Cloud TPU slice; the arguments after its name and zone are those of train.py:
#
#     experiments/launch/cloud_tpu.sh my-tpu us-central2-b --gin_file=gin/scaling/1300m_rec.gin \
#         --gin_file=gin/meshes/v5e_4x8.gin --gin.data.path=/shared/pg19 --workdir=/shared/runs/1300m
#
# Needs this repository, installed with its extra `tpu`, at ~/block_recurrent on every host, and a file
# system that all of them see at /shared. Not run on a slice yet.
set -e
name=$1 zone=$2
shift 2
printf -v arguments ' %q' "$@"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
    cd block_recurrent && .venv/bin/python experiments/train.py --multiprocess$arguments"
