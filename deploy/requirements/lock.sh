#!/bin/sh
# Writes the two lists of packages that the images are built from. Run it in the source folder with uv on the PATH, and
# pass what the tests ran with, so that images hold the same:
#   .venv/bin/pip freeze --exclude-editable > pins.txt && deploy/requirements/lock.sh --constraint pins.txt
set -eu

here=deploy/requirements
lock() {
    uv pip compile pyproject.toml --extra onnx --extra fleet --generate-hashes --no-header --no-annotate --quiet \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

lock "$@" --output-file "$here/cuda.txt"

# What comes from another registry for the CPU (torch, torchvision), or is not needed there at all.
gpu=$(grep -oE '^(nvidia-[a-z0-9-]+|cuda-[a-z-]+|triton|torch|torchvision)==' "$here/cuda.txt" | tr -d '=')
# shellcheck disable=SC2046
lock "$@" --output-file "$here/cpu.txt" $(printf ' --no-emit-package %s' $gpu)
grep -oE '^(torch|torchvision)==[^ ]+' "$here/cuda.txt" > "$here/cpu-torch.txt"

printf 'setuptools>=77\n' | uv pip compile - --generate-hashes --no-header --no-annotate --quiet --python-version 3.11 \
    "$@" --output-file "$here/build.txt"
