#!/usr/bin/env bash
# The first ten minutes on a card: what is worth most comes first, and each figure is kept as soon as it is there.
#
#   benchmarks/card.sh [WHEELS]    # in a checkout, on a machine with one CUDA card of 80 GB; WHEELS is a folder of wheels
#
# For an image with torch 2.11 or later for CUDA 13, Python 3.12 and accelerate, and without a network, these wheels
# suffice, 25 MB in all (MB in brackets): transformers 5.23.0 (13.3), bitsandbytes 0.50.2 less the libraries of other
# CUDA versions, `zip -d` (3.6), torchao 0.18.0 (3.4), pydantic_core 2.50.4 (2.3), trl 1.16.0 (0.9), peft 0.21.2 (0.8),
# datasets 5.2.0 (0.6), pydantic 2.14.3 (0.5), multiprocess, dill, ruamel.yaml, typing_inspection and annotated_types
# (0.4). dvc, dvclive and lm-eval are not needed. grouped-nf4-gemm 0.51.0 (0.4), whose kernel needs the image's Triton, is
# compared where its wheel is there. unsloth_zoo takes transformers up to 5.17 and trl up to 1.15, so it is not.
#
# Writes benchmarks/results/card.json: training and decoding beside benchmarks/results/card_predictions.json, whether two
# equal runs give the same bytes, and whether NF4 has the bits of a CPU.
set -u
cd "$(dirname "$0")/.."
deadline=$((SECONDS + 530)) # nine minutes, less what a start takes

if [ $# -gt 0 ]; then
  python -m venv --system-site-packages .aurora/card || exit 1
  . .aurora/card/bin/activate
  pip install --quiet --no-index --no-deps "$1"/*.whl || exit 1
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
PYTHONPATH=. timeout $((deadline - SECONDS)) python -W ignore benchmarks/mixtral_gpu.py --record
