#!/usr/bin/env bash
# Installs Chromium (Debian) and playwright, for the browser test of the report.
#
#     scripts/install_browser.sh [PYTHON]      PYTHON: interpreter of the environment, by default .venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
say() { echo "install_browser: $*" >&2; }
. scripts/apt.sh

if [ ! -x "$(command -v chromium || command -v chromium-browser || true)" ]; then
  apt_install chromium
fi
"$python" -m pip install --quiet -e '.[browser]' -c constraints.txt
say "$(chromium --version 2>/dev/null || echo Chromium) and playwright are installed"
