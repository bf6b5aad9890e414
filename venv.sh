# shellcheck shell=bash
# The project's own virtual environment, .venv; sourced by local-run.sh and run-tests.sh.

# use_venv ROOT REQUIREMENTS: activate ROOT/.venv, made and filled where it lacks what REQUIREMENTS asks for.
use_venv() {
    local root=$1 requirements=$2 python candidate wanted
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "${python:-}" ]; then
        echo "Python 3.11 or later is needed and was not found; install it, or name it: PYTHON=/path/to/python3 $0" >&2
        exit 2
    fi

    wanted=$(cat "$root"/constraints.txt "$root"/requirements*.txt "$root"/workers/*/requirements.txt | cksum)
    if [ ! -x "$root/.venv/bin/python" ]; then
        "$python" -m venv "$root/.venv" || {
            echo "$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
            exit 2
        }
    fi
    if [ "$(cat "$root/.venv/$requirements.installed" 2>/dev/null)" != "$wanted" ]; then
        echo "installing the packages of $requirements into .venv (once)" >&2
        "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$root/$requirements"
        echo "$wanted" >"$root/.venv/$requirements.installed"
    fi
    # shellcheck source=/dev/null
    . "$root/.venv/bin/activate"
}
