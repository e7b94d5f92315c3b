#!/bin/bash
# The whole pipeline as jobs that wait for each other: data on CPUs, training and evaluation on cards.
#   examples/slurm/pipeline.sh [CARDS]
set -eu
cards=${1:-1}
job=examples/slurm/stages.sbatch
after=$(sbatch --parsable --cpus-per-task=8 --mem=16G "$job" format)
for stage in sft merge eval report; do
    after=$(sbatch --parsable --dependency="afterok:$after" --gres="gpu:$cards" "$job" "$stage")
done
echo "the report comes with job $after"
