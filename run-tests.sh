#!/usr/bin/env bash
# Run the tests, after installing what they need.
#
#   ./run-tests.sh [arguments of pytest]     the tests, RabbitMQ included
#   ./run-tests.sh --fast [..]               only those that need no service and little time
#   ./run-tests.sh --all [..]                also the slow ones and, with Docker, the Compose stack
#
# For example: ./run-tests.sh -k selection. Four tests run at a time, most of which wait
# for a broker or a deadline; -n0 runs one after the other (for --pdb and -s).
# RabbitMQ is started in a container, or from the package rabbitmq-server where no Docker
# engine answers. As root on Debian, that package, Chromium and xrootd-server are installed with apt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

which=default
case ${1:-} in
    --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;;
    --fast | --all) which=${1#--}; shift ;;
esac

policy=/usr/sbin/policy-rc.d
install_packages() { # install_packages NAME..: with apt, without starting a server that is installed
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "run-tests.sh: not installed: $*; the tests that need it are skipped" >&2
        return
    fi
    echo "installing $*" >&2
    apt-get update -qq
    (
        saved=$(mktemp -d)
        if [ -e "$policy" ]; then cp -p "$policy" "$saved/"; fi
        trap 'rm -f "$policy"; if [ -e "$saved/policy-rc.d" ]; then mv "$saved/policy-rc.d" "$policy"; fi; rm -rf "$saved"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    )
}
if [ "$which" != fast ]; then
    missing=()
    docker info >/dev/null 2>&1 || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || missing+=(rabbitmq-server)
    [ "$which" != all ] || command -v chromium >/dev/null || missing+=(chromium)
    command -v xrootd >/dev/null || missing+=(xrootd-server)
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
fi

# shellcheck source=venv.sh
. "$here/venv.sh"
use_venv "$here" tests '1.3 GB, about two minutes' -e '.[lint,test]'
cd "$here"
case $which in
    fast)
        exec python -m pytest -n auto --maxprocesses 4 --dist loadfile --fast "$@"
        ;;
    all) set -- --all-tests "$@" ;;
esac

# The tests of a file run in one process, which starts the services and runs that they share once. Tests that must not
# run at the same time as others come last. Pytest's exit code 5: no test was selected.
code=0 alone=0
python -m pytest -n 4 --dist loadfile --no-loadscope-reorder --stage parallel "$@" || code=$?
python -m pytest --stage alone "$@" || alone=$?
if [ "$code" = 0 ] || [ "$code" = 5 ]; then
    [ "$alone" = 5 ] || code=$alone
fi
exit "$code"
