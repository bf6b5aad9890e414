#!/usr/bin/env bash
# Run an analysis on this machine, without Docker and without RabbitMQ.
#
#   ./local-run.sh [flags of analysis.py]     for example: ./local-run.sh --release demo
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export COMMAND_NAME=$0

case ${1:-} in
    --help | -h)
        sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"
        "$here/.venv/bin/python" "$here/analysis.py" --help 2>/dev/null ||
            echo "The flags are shown here after the first run, and in README.md."
        exit
        ;;
esac

# shellcheck source=venv.sh
. "$here/venv.sh"
use_venv "$here" run '450 MB, about a minute' -r requirements.txt
exec python "$here/analysis.py" "$@"
