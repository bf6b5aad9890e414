# shellcheck shell=bash
# The project's virtual environment, .venv; sourced by the scripts that need one.

# use_venv ROOT NAME COST ARGUMENTS: make ROOT/.venv, install what the ARGUMENTS of pip ask for, and activate it.
# COST is what the user reads before the installation: its size and duration.
#
# The environment is made in .venv.new, checked, and renamed. The file .venv/made says that it was made here and of
# which Python, and .venv/NAME.packages at which place and with which packages. If one of these has changed, or PYTHON
# is set to another Python, it is made anew with the packages of every NAME; one that the user made is used if it works.
# Modules of PYTHONPATH or of another Python (PYTHONHOME) would take the place of these packages, so both are unset.
use_venv() {
    local root=$1 name=$2 cost=$3 lists
    shift 3
    unset PYTHONPATH PYTHONHOME
    lists=$(cat "$root"/{pyproject.toml,constraints.txt,requirements.txt} "$root"/{monitoring,workers/*}/requirements.txt | cksum)
    if ! _is_complete "$@"; then
        (_make_complete "$@") || exit # in a process of its own, whose end removes the lock
    fi
    # shellcheck source=/dev/null
    . "$root/.venv/bin/activate"
}

# Print where a Python 3.11 or later is installed, and its version; fails for an earlier one.
_version() {
    "$1" -c 'import sys; print(sys.base_prefix, *sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))'
}

# Print where the Python of an environment is installed, and its version; fails where that is no environment.
_own() {
    [ -e "$1/pyvenv.cfg" ] && _version "$1/bin/python"
}

# The environment's own Python is asked, and no other unless PYTHON names one: a start through pyenv takes 0.15 s.
_is_complete() {
    local packages
    packages=$(_packages "$root/.venv" "$@") && [ "$(cat "$root/.venv/$name.packages")" = "$packages" ] && _is_asked_for
} 2>/dev/null

# Whether the environment is of the Python that PYTHON names.
_is_asked_for() {
    local version
    [ -z "${PYTHON:-}" ] || {
        version=$(_version "$PYTHON") && [ "$(cat "$root/.venv/made" || _own "$root/.venv")" = "$version" ]
    }
}

# _packages ENVIRONMENT ARGUMENTS: print what it consists of; fails if it cannot be used.
_packages() {
    local own
    own=$(_own "$1") && printf '%s\n' "$root/.venv $own $lists" "${*:2}"
}

_fail() { echo "$0: $1" >&2; exit 2; }

# Print the Python to use, and its version on another line: PYTHON if it is set, else the first of these that is recent
# enough, else one of uv's.
_find_python() {
    local candidate version
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 uv; do
        [ "$candidate" != uv ] || candidate=$(uv python find --no-project '>=3.11' 2>/dev/null)
        if version=$(_version "$candidate" 2>/dev/null); then
            printf '%s\n' "$candidate" "$version"
            return
        fi
        [ -z "${PYTHON:-}" ] || _fail "PYTHON=$PYTHON is not a Python 3.11 or later that can be run; correct or unset it"
    done
    _fail "Python 3.11 or later was not found; install it, or set PYTHON=/path/to/python3"
}

_make_complete() {
    local venv=$root/.venv.new found python other words all
    found=$(_find_python) || exit 2
    python=${found%%$'\n'*}
    _lock
    ! _is_complete "$@" || return 0 # another process has installed them meanwhile
    all=("$@")
    if _is_users; then
        venv=$root/.venv
    else
        _make_venv
        for other in "$root"/.venv/*.packages; do
            if [ -e "$other" ] && [ "$other" != "$root/.venv/$name.packages" ]; then
                read -r -a words < <(tail -n 1 "$other")
                all+=("${words[@]}")
                _packages "$venv" "${words[@]}" >"$venv/$(basename "$other")"
            fi
        done
    fi
    echo "installing packages into $root/.venv: $cost" >&2
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "${all[@]}") ||
        _fail "the packages could not be installed, as pip says above; run this again"
    _packages "$venv" "$@" >"$venv/$name.packages"
    [ "$venv" = "$root/.venv" ] || _put_in_place
}

_is_users() {
    [ ! -e "$root/.venv/made" ] && _own "$root/.venv" && _is_asked_for && "$root/.venv/bin/python" -m pip --version
} >/dev/null 2>&1

_make_venv() {
    rm -rf "$venv"
    if ! { "$python" -m venv "$venv" || uv venv --seed --clear --python "$python" "$venv"; } >/dev/null 2>&1 ||
        ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        _fail "$python cannot make a virtual environment; install its venv module (Debian: apt-get install python3-venv) or uv"
    fi
    echo "${found#*$'\n'}" >"$venv/made"
}

# The scripts of an environment name its place.
_put_in_place() {
    local problems
    problems=$("$venv/bin/python" -m pip check --disable-pip-version-check) ||
        _fail "the installed packages do not fit together: $problems; correct constraints.txt or requirements.txt"
    "$venv/bin/python" - "$venv" <<'END'
import pathlib, sys

venv = pathlib.Path(sys.argv[1])
for path in (venv / "pyvenv.cfg", *(venv / "bin").iterdir()):
    if path.is_file() and not path.is_symlink() and b".venv.new" in (content := path.read_bytes()):
        path.write_bytes(content.replace(b".venv.new", b".venv"))
END
    rm -rf "$root/.venv"
    mv "$venv" "$root/.venv"
}

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
    trap "rm -rf '$lock' '$root/.venv.new'" EXIT
    trap 'exit 130' INT TERM HUP
    echo $$ >"$lock/process"
}
