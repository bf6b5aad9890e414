#!/usr/bin/env bash
# Run one analysis on this machine: no Docker, no broker.
#
#   ./local-run.sh [the flags of analysis.py]     for example: ./local-run.sh --release demo
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

# shellcheck source=venv.sh
. "$here/venv.sh"
use_venv "$here" requirements.txt
exec python "$here/analysis.py" "$@"
