# shellcheck shell=bash
# The project's virtual environment, .venv; sourced by the scripts that need one.

# use_venv ROOT NAME COST ARGUMENTS: make ROOT/.venv, install what the ARGUMENTS of pip ask for, and activate it.
# COST is what the user reads before the installation: its size and duration.
#
# The file .venv/made says where and with which Python the environment was made. It is made anew if it is at another
# place, of another Python, or was not completed; one that the user made is used if it works. The file
# .venv/NAME.installed says that these packages are installed. Modules of PYTHONPATH or of another Python (PYTHONHOME)
# would take the place of these packages, so both are unset.
use_venv() {
    local root=$1 name=$2 cost=$3 python made packages
    shift 3
    unset PYTHONPATH PYTHONHOME
    python=$(_find_python) || exit 2
    made="$root/.venv $(_version "$python")"
    packages="$(cat "$root"/{pyproject.toml,constraints.txt,requirements.txt} "$root"/{monitoring,workers/*}/requirements.txt | cksum) $*"
    if ! _is_complete; then
        (_make_complete "$@") || exit # in a process of its own, whose end removes the lock
    fi
    # shellcheck source=/dev/null
    . "$root/.venv/bin/activate"
}

_version() { "$1" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2])'; }

_fits() {
    [ "$(cat "$root/.venv/made" 2>/dev/null)" = "$made" ] && [ ! -e "$root/.venv/installing" ] && "$root/.venv/bin/python" -c '' 2>/dev/null
}

_is_complete() { [ "$(cat "$root/.venv/$name.installed" 2>/dev/null)" = "$packages" ] && _fits; }

_fail() { echo "$0: $1" >&2; exit 2; }

# Print the Python to use: PYTHON if it is set, else the first of these that is recent enough, else one of uv's.
_find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 uv; do
        [ "$candidate" != uv ] || candidate=$(uv python find --no-project '>=3.11' 2>/dev/null)
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        [ -z "${PYTHON:-}" ] || _fail "PYTHON=$PYTHON is not a Python 3.11 or later that can be run; correct or unset it"
    done
    _fail "Python 3.11 or later was not found; install it, or set PYTHON=/path/to/python3"
}

_make_complete() {
    _lock
    if ! _fits && ! _is_users; then
        rm -rf "$root/.venv"
        if ! { _make_venv && "$root/.venv/bin/python" -m pip --version; } >/dev/null 2>&1; then
            rm -rf "$root/.venv"
            _fail "$python cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv) or uv"
        fi
    fi
    echo "$made" >"$root/.venv/made"
    ! _is_complete || return 0 # another process has installed them meanwhile
    echo "installing packages into $root/.venv: $cost" >&2
    touch "$root/.venv/installing"
    (cd "$root" && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@") ||
        _fail "the packages could not be installed, as pip says above; run this again"
    echo "$packages" >"$root/.venv/$name.installed"
    rm "$root/.venv/installing"
}

_is_users() {
    local own=$root/.venv/bin/python
    [ ! -e "$root/.venv/made" ] && [ "$("$own" -c 'import sys; print(sys.prefix)') $(_version "$own")" = "$made" ] && "$own" -m pip --version
} >/dev/null 2>&1

_make_venv() { "$python" -m venv "$root/.venv" || uv venv --seed --clear --python "$python" "$root/.venv"; }

# Have one process install at a time; a lock of a process that has ended is removed.
_lock() {
    local lock=$root/.venv.lock holder said=''
    until mkdir "$lock" 2>/dev/null; do
        [ -d "$lock" ] || _fail "$root/.venv cannot be made: $root cannot be written to; use a copy of the project"
        holder=$(cat "$lock/process" 2>/dev/null || { sleep 1; cat "$lock/process" 2>/dev/null; } || true)
        if kill -0 "${holder:-none}" 2>/dev/null; then
            [ -n "$said" ] || echo "waiting for process $holder, which installs packages into $root/.venv" >&2
            said=1
            sleep 1
        else
            rm -rf "$lock"
        fi
    done
    # shellcheck disable=SC2064  # the path is that of now
    trap "rm -rf '$lock'" EXIT
    trap 'exit 130' INT TERM HUP
    echo $$ >"$lock/process"
}
