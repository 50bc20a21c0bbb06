#!/usr/bin/env bash
# Measures scoring on a GPU beside what people use instead; models have random weights and are made in memory.
#
#     benchmarks/gpu/run.sh --data alpaca.jsonl --tokenizer FOLDER --out results.json
#     benchmarks/gpu/run.sh --table results.json
#     benchmarks/gpu/run.sh --scale tiny --device cpu --records 8 ...    # whether it works at all
#
# `--help` lists everything. PYTHON names the interpreter, python3 if not set. It needs torch, transformers, tokenizers,
# numpy and jinja2; tithe itself need not be installed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here/../../src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" "$here/run.py" "$@"
