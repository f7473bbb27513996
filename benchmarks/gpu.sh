#!/usr/bin/env bash
# Figures on a GPU in one command, inside eight minutes, on a machine that has PyTorch and no network.
#
#   benchmarks/gpu.sh wheels DIR        where there is a network: downloads the packages that such a machine lacks
#   benchmarks/gpu.sh [DIR] [OPTIONS]   on that machine: installs the wheels of DIR into a temporary folder, runs
#                                       everything and writes docs/results/gpu.md; OPTIONS as --fashion FOLDER, --minutes 7
#   benchmarks/gpu.sh rehearse          everything at its smallest size on the CPU
#
# PYTHON is the interpreter, python3 by default. The machine needs torch, numpy, scipy, torchdiffeq, tokenizers,
# safetensors, matplotlib, pyarrow, pandas, huggingface_hub, fsspec, xxhash, tqdm, pillow, markdown-it-py, regex, requests,
# pytest and hypothesis; the wheels are those of PACKAGES.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PACKAGES="datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.1
    diffusers==0.42.1 importlib_metadata==10.2.0 zipp==4.1.2"

if [ "${1:-}" = wheels ]; then
    folder=${2:?give a folder: benchmarks/gpu.sh wheels DIR}
    # shellcheck disable=SC2086
    "$PYTHON" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        -q -d "$folder" $PACKAGES
    echo "in $folder: $(cd "$folder" && echo *.whl)"
    exit
fi

rehearse=
if [ "${1:-}" = rehearse ]; then
    rehearse="--rehearse --minutes 40"
    shift
fi
site=
if [ -n "${1:-}" ] && [ "${1#-}" = "$1" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$1"/*.whl
    shift
fi
PYTHONPATH="src:$site" "$PYTHON" -m benchmarks.gpu $rehearse "$@"
