#!/usr/bin/env bash
# Run the tests, with everything they need set up first.
#
#   ./run-tests.sh [arguments of pytest]     for example: ./run-tests.sh -k selection
#
# RabbitMQ comes from a container where a Docker engine answers, else from this
# machine's rabbitmq-server. That and Chromium, for the tests of the page, are
# installed with apt where we are root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

install() { # install PACKAGE: with apt where we are root; a server that comes along is not started
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$1 is not installed: the tests that need it will be left out" >&2
        return
    fi
    echo "installing $1 (once)" >&2
    apt-get update -qq
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
    rm -f /usr/sbin/policy-rc.d
}

docker info >/dev/null 2>&1 || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || install rabbitmq-server
command -v chromium >/dev/null || install chromium

# shellcheck source=venv.sh
. "$here/venv.sh"
use_venv "$here" requirements-test.txt
cd "$here"
exec python -m pytest "$@"
