#!/usr/bin/env bash
# Installs FFCV and the libraries it is compiled against (Debian or Ubuntu).
#
#     scripts/install_ffcv.sh [PYTHON]      PYTHON: interpreter of the environment, by default .venv/bin/python
#
# With conda instead: conda install -c conda-forge opencv libjpeg-turbo pkg-config compilers &&
#     pip install ffcv
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
say() { echo "install_ffcv: $*" >&2; }
. scripts/apt.sh

if [ ! -x "$(command -v "$python" || true)" ]; then
  say "there is no Python at $python: run make test first, or pass an interpreter"
  exit 2
fi
if "$python" -c "import ffcv" 2>/dev/null; then
  say "FFCV is installed already"
  exit 0
fi
missing=()
for name in opencv4 libturbojpeg; do
  pkg-config --exists "$name" 2>/dev/null || missing+=("$name")
done
if [ ${#missing[@]} -gt 0 ] || [ ! -x "$(command -v g++ || true)" ]; then
  apt_install g++ libopencv-dev libturbojpeg0-dev pkg-config
fi
# FFCV imports distutils, which setuptools provides since Python 3.12.
"$python" -m pip install --quiet setuptools wheel
"$python" -m pip install --quiet -e '.[ffcv]' -c constraints.txt
"$python" -W ignore -c "import ffcv" || { say "FFCV was built but cannot be loaded"; exit 2; }
say "FFCV is installed"
