#!/usr/bin/env bash
# Run the tests, with everything they need set up first.
#
#   ./run-tests.sh [arguments of pytest]     for example: ./run-tests.sh -k selection
#
# RabbitMQ comes from a container where a Docker engine answers, else from this
# machine's rabbitmq-server, which is installed with apt where we are root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

if ! docker info >/dev/null 2>&1 && ! command -v rabbitmq-server >/dev/null && [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing rabbitmq-server (once)" >&2
        apt-get update -qq
        # Only the program: the tests start a broker of their own.
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rabbitmq-server >/dev/null
        rm -f /usr/sbin/policy-rc.d
    else
        echo "no Docker engine and no rabbitmq-server: the tests that need RabbitMQ will be left out" >&2
    fi
fi

# shellcheck source=venv.sh
. "$here/venv.sh"
use_venv "$here" requirements-test.txt
cd "$here"
exec python -m pytest "$@"
