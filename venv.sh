# shellcheck shell=bash
# The project's virtual environment, .venv; sourced by the scripts that need one.

# use_venv ROOT NAME ARGUMENTS: create ROOT/.venv where it is missing, install what the ARGUMENTS of pip ask for
# unless the same were installed before under this NAME, and activate it.
use_venv() {
    local root=$1 name=$2 python='' candidate wanted
    shift 2
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "$0: Python 3.11 or later was not found; install it, or set PYTHON=/path/to/python3" >&2
        exit 2
    fi
    if [ ! -x "$root/.venv/bin/python" ]; then
        "$python" -m venv "$root/.venv" || {
            echo "$0: $python cannot create a virtual environment; on Debian: apt-get install python3-venv" >&2
            exit 2
        }
    fi
    wanted=$(cat "$root"/{pyproject.toml,constraints.txt,requirements.txt} "$root"/{monitoring,workers/*}/requirements.txt | cksum)
    if [ "$(cat "$root/.venv/$name.installed" 2>/dev/null)" != "$wanted" ]; then
        echo "installing packages into $root/.venv" >&2
        (cd "$root" && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@")
        echo "$wanted" >"$root/.venv/$name.installed"
    fi
    # shellcheck source=/dev/null
    . "$root/.venv/bin/activate"
}
