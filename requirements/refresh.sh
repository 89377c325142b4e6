#!/usr/bin/env bash
# Choose the newest versions that pyproject.toml allows, with the hashes of their files, for every platform and CPython
# from 3.11. Needs uv (`pip install uv`). Without arguments everything is upgraded; `refresh.sh NAME…` upgrades these.
set -euo pipefail
cd "$(dirname "$0")/.."

upgrade=(--upgrade)
if [ $# -gt 0 ]; then upgrade=(); for name in "$@"; do upgrade+=(--upgrade-package "$name"); done; fi

compile() { # OUTPUT SOURCE…
  local output=requirements/$1
  shift
  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --custom-compile-command requirements/refresh.sh --output-file "$output" "${upgrade[@]}" "$@"
}

compile build.txt requirements/build.in
# What the image has: it serves /mcp, too.
compile runtime.txt pyproject.toml --extra mcp
compile dev.txt --constraint requirements/runtime.txt --constraint requirements/build.txt requirements/build.in \
  pyproject.toml --extra dev
