#!/usr/bin/env bash
# Run an analysis on the Compose stack: RabbitMQ and the four services in containers.
#
#   ./docker-run.sh [flags of analysis.py]    build and start the stack, submit a run, follow it
#   ./docker-run.sh --logs                    follow the logs of the services
#   ./docker-run.sh --down                    stop the stack; its volumes are kept
#
# --data DIR is a directory of this machine. The results are written to ./results, or to --output DIR.
# --analysis FILE is copied to ./analyses, where the services read it.
# The flags are in README.md, Configuration.
set -euo pipefail
cd "$(dirname "$0")"
caller=$OLDPWD

fail() { echo "docker-run.sh: $1" >&2; exit "${2:-1}"; }

case ${1:-} in
    --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;;
esac

command -v docker >/dev/null || fail "Docker is not installed; install it, or use ./local-run.sh, which does not need it"
docker info >/dev/null 2>&1 || fail "the Docker engine does not answer; start it, or use ./local-run.sh, which does not need it"
docker compose version >/dev/null 2>&1 || fail "docker compose is missing; install the Compose plugin"

case ${1:-} in
    --down) exec docker compose --profile submit down --remove-orphans ;;
    --logs) exec docker compose logs --follow ;;
esac

# absolute PATH: a path relative to the caller's directory, made absolute
absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$caller/$1" ;; esac; }

# from_dot_env NAME: print the path or address that .env has for NAME; a relative path is relative to .env
from_dot_env() {
    local value
    value=$(sed -n "s/^$1=//p" .env 2>/dev/null | tail -n 1) || true
    value=${value#[\"\']} value=${value%[\"\']}
    case $value in "" | /* | *:/* | *:*@*) printf %s "$value" ;; *) printf %s "$PWD/$value" ;; esac
}

flags=()
data=${DATA-$(from_dot_env DATA)}
output=${OUTPUT-$(from_dot_env OUTPUT)}
output=${output:-results}
analysis=${ANALYSIS-$(from_dot_env ANALYSIS)}
unset DATA OUTPUT ANALYSIS
while [ $# -gt 0 ]; do
    case $1 in
        --data=*) data=${1#*=} ;;
        --output=*) output=${1#*=} ;;
        --analysis=*) analysis=${1#*=} ;;
        --data | --output | --analysis)
            [ $# -gt 1 ] || fail "$1 needs a value" 2
            case $1 in --data) data=$2 ;; --output) output=$2 ;; --analysis) analysis=$2 ;; esac
            shift
            ;;
        --broker | --broker=*) fail "--broker is for analysis.py; this script starts its own broker" 2 ;;
        *) flags+=("$1") ;;
    esac
    shift
done

# A directory of this machine is mounted as /data in the data-loader. Without --data, a running data-loader keeps its mount.
case $data in
    *://*) flags+=(--data "$data") ;;
    [!/.]*:/* | [!/.]*:*@*) fail "--data: an address has two slashes after the colon, like https://host/4lep; a directory, ./ before its name" 2 ;;
    "")
        loader=$(docker compose ps --quiet data-loader 2>/dev/null | head -n 1)
        if [ -z "${DATA_DIR:-}" ] && [ -n "$loader" ]; then
            mounted='{{range .Mounts}}{{if and (eq .Destination "/data") (eq .Type "bind")}}{{.Source}}{{end}}{{end}}'
            DATA_DIR=$(docker inspect --format "$mounted" "$loader")
        fi
        ;;
    *)
        data=$(absolute "$data")
        [ -d "$data" ] || fail "--data '$data': no such directory; give the directory that holds Data/ and MC/" 2
        DATA_DIR=$(cd "$data" && pwd)
        flags+=(--data /data)
        ;;
esac
export DATA_DIR=${DATA_DIR:-no-data}

# The file of an own analysis is replaced at once, so that no service reads half of it.
case $analysis in
    *.py)
        analysis=$(absolute "$analysis") name=${analysis##*/}
        [ -r "$analysis" ] || fail "--analysis '$analysis': no such file, or it cannot be read" 2
        mkdir -p analyses
        cmp -s "$analysis" "analyses/$name" || {
            cp "$analysis" "analyses/.$name.part"
            chmod 644 "analyses/.$name.part"  # the services have another user
            mv -f "analyses/.$name.part" "analyses/$name"
        }
        flags+=(--analysis "${name%.py}")
        ;;
    ?*) flags+=(--analysis "${analysis##*/}") ;;
esac

output=$(absolute "$output")
mkdir -p "$output" || fail "--output '$output': this directory cannot be created" 2
export RESULTS_DIR=$output

case ${RABBITMQ_HOST:-} in localhost | 127.* | ::1) fail "RABBITMQ_HOST=$RABBITMQ_HOST: in a container, this is the container itself; unset it, or give a name that the containers can reach" 2 ;; esac

# The file is mounted into the services under another name.
if [ -n "${RABBITMQ_TLS_CA:-}" ]; then
    RABBITMQ_TLS_CA=$(absolute "$RABBITMQ_TLS_CA")
    export RABBITMQ_TLS_CA
fi
authority=${RABBITMQ_TLS_CA-$(from_dot_env RABBITMQ_TLS_CA)}
[ -z "$authority" ] || [ -r "$authority" ] || fail "RABBITMQ_TLS_CA=$authority: no such file, or it cannot be read" 2

# The key that signs the messages is generated once and kept in .env, where Compose reads it.
has_secret() { grep -Eq '^[[:space:]]*(export[[:space:]]+)?(MESSAGE_KEY|RABBITMQ_PASS)[[:space:]]*=' .env 2>/dev/null; }
if [ -z "${MESSAGE_KEY:-}" ] && ! grep -q '^MESSAGE_KEY=.' .env 2>/dev/null; then new_key=1; else new_key=''; fi
if [ -n "$new_key" ] || has_secret; then
    if [ -d .env ] || ! (umask 077 && touch .env && chmod 600 .env) 2>/dev/null; then
        fail "MESSAGE_KEY cannot be kept in $PWD/.env, which must be a file that only you can read; correct it, or set MESSAGE_KEY"
    fi
fi
[ -z "$new_key" ] || printf '\nMESSAGE_KEY=%s\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >>.env

# Takes a second or two if nothing has changed, because every layer is cached.
./build-images.sh >&2

# Keep the number of replicas that are running.
scale=()
for service in data-loader data-processor; do
    running=$(($(docker compose ps --quiet "$service" 2>/dev/null | wc -l)))
    [ "$running" -le 1 ] || scale+=(--scale "$service=$running")
done

# Some versions of Compose exit with 0 although a service is not healthy, so check the health here.
docker compose --progress quiet up --detach --wait --wait-timeout 180 ${scale[@]+"${scale[@]}"} || true
unhealthy=$(docker compose ps --all --format '{{.Service}} {{.Health}}' | grep -v ' healthy$' || true)
if [ -n "$unhealthy" ]; then
    docker compose logs --tail 20 >&2
    fail "not healthy: ${unhealthy//$'\n'/, }; the last log lines are above"
fi

# Some versions of Compose do not return the exit code of the container, so read it from the container.
name=${COMPOSE_PROJECT_NAME:-atlas-open-data}-submit-$$
trap 'docker rm --force "$name" >/dev/null 2>&1' EXIT
submit=(docker compose --progress quiet run --name "$name" --no-deps --user "$(id -u):$(id -g)")
[ -t 0 ] && [ -t 1 ] || submit+=(-T)
"${submit[@]}" submit ${flags[@]+"${flags[@]}"} || true
# The container may still run: Compose ends when its output is closed, the run does not.
code=$(docker wait "$name" 2>/dev/null || echo 1)
[ "$code" = 2 ] || echo "all runs: http://127.0.0.1:${PAGE_PORT:-8080}/    RabbitMQ: http://127.0.0.1:${MANAGEMENT_PORT:-15672}/"
exit "$code"
