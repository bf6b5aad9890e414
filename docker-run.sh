#!/usr/bin/env bash
# Run one analysis on the Compose stack: RabbitMQ and the four services in containers.
#
#   ./docker-run.sh [the flags of analysis.py]    start what is not running, submit the run, follow it
#   ./docker-run.sh --logs                        follow the services' logs
#   ./docker-run.sh --down                        stop the stack; its volumes stay
#
# --data DIR is a directory of this machine; results come to ./results, or to --output DIR.
set -euo pipefail
cd "$(dirname "$0")"
caller=$OLDPWD

fail() { echo "docker-run.sh: $1" >&2; exit "${2:-1}"; }

command -v docker >/dev/null || fail "Docker is not installed; see ./local-run.sh, which needs none"
docker info >/dev/null 2>&1 || fail "the Docker engine does not answer; start it, or see ./local-run.sh, which needs none"
docker compose version >/dev/null 2>&1 || fail "docker compose is missing; install the Compose plugin"

case ${1:-} in
    --down) exec docker compose --profile submit down --remove-orphans ;;
    --logs) exec docker compose logs --follow ;;
esac

# from_here PATH: a path the caller gave, made absolute.
from_here() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$caller/$1" ;; esac; }

flags=()
data=${DATA:-}
output=${OUTPUT:-results}
unset DATA OUTPUT
while [ $# -gt 0 ]; do
    case $1 in
        --data=*) data=${1#*=} ;;
        --output=*) output=${1#*=} ;;
        --data | --output)
            [ $# -gt 1 ] || fail "$1 needs a value" 2
            if [ "$1" = --data ]; then data=$2; else output=$2; fi
            shift
            ;;
        --broker | --broker=*) fail "--broker is for analysis.py; this script runs its own broker" 2 ;;
        *) flags+=("$1") ;;
    esac
    shift
done

# A directory of the host is /data in the loader. Without one, a running loader keeps what it has.
case $data in
    *://*) flags+=(--data "$data") ;;
    "")
        loader=$(docker compose ps --quiet data-loader 2>/dev/null | head -n 1)
        if [ -z "${DATA_DIR:-}" ] && [ -n "$loader" ]; then
            mounted='{{range .Mounts}}{{if and (eq .Destination "/data") (eq .Type "bind")}}{{.Source}}{{end}}{{end}}'
            DATA_DIR=$(docker inspect --format "$mounted" "$loader")
        fi
        ;;
    *)
        data=$(from_here "$data")
        [ -d "$data" ] || fail "DATA='$data': no such directory; give the one that holds Data/ and MC/" 2
        DATA_DIR=$(cd "$data" && pwd)
        flags+=(--data /data)
        ;;
esac
export DATA_DIR=${DATA_DIR:-no-data}

output=$(from_here "$output")
mkdir -p "$output" || fail "--output '$output' cannot be made" 2
export RESULTS_DIR=$output

# The key that this stack's messages are signed with is made once, and kept where Compose looks for it.
if [ -z "${MESSAGE_KEY:-}" ] && ! grep -q '^MESSAGE_KEY=.' .env 2>/dev/null; then
    (
        umask 077
        printf '\nMESSAGE_KEY=%s\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >>.env
    )
fi

# With nothing changed this takes a second or two: every layer is there.
./build-images.sh >&2

# Replicas that somebody has added stay.
scale=()
for service in data-loader data-processor; do
    running=$(docker compose ps --quiet "$service" 2>/dev/null | wc -l)
    [ "$running" -le 1 ] || scale+=(--scale "$service=$running")
done

# Not every build of Compose says by its exit code that a service is not healthy: look for ourselves.
docker compose --progress quiet up --detach --wait --wait-timeout 180 "${scale[@]}" || true
unhealthy=$(docker compose ps --all --format '{{.Service}} {{.Health}}' | grep -v ' healthy$' || true)
if [ -n "$unhealthy" ]; then
    docker compose logs --tail 20 >&2
    fail "not healthy: ${unhealthy//$'\n'/, }; the last lines of the logs stand above"
fi

# The exit code is asked of the container itself: not every build of Compose hands it on.
name=${COMPOSE_PROJECT_NAME:-atlas-open-data}-submit-$$
trap 'docker rm --force "$name" >/dev/null 2>&1' EXIT
submit=(docker compose --progress quiet run --name "$name" --no-deps --user "$(id -u):$(id -g)")
[ -t 0 ] && [ -t 1 ] || submit+=(-T)
"${submit[@]}" submit "${flags[@]}" || true
code=$(docker inspect --format '{{.State.ExitCode}}' "$name" 2>/dev/null || echo 1)
[ "$code" = 2 ] || echo "all runs: http://127.0.0.1:${PAGE_PORT:-8080}/    the broker: http://127.0.0.1:${MANAGEMENT_PORT:-15672}/"
exit "$code"
