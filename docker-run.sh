#!/usr/bin/env bash
# Run an analysis on the Compose stack: RabbitMQ and the four services in containers.
#
#   ./docker-run.sh [FLAG ..]                  build and start the stack, submit a run, follow it
#   ./docker-run.sh runs [--json]              list the runs
#   ./docker-run.sh follow RUN_ID              follow a run, and write its result folder
#   ./docker-run.sh cancel RUN_ID              cancel a run
#   ./docker-run.sh dead-letters [--requeue]   list, or retry, the messages that could not be handled
#   ./docker-run.sh --scale SERVICE=N ..       set the number of data-loaders or data-processors
#   ./docker-run.sh --scan SERVICE=N,N,..      run with each number of replicas, and show speed-up and what limits it;
#                                              --events N, --repeat N, --output DIR: see README.md
#   ./docker-run.sh --logs [SERVICE]           follow the logs of the services
#   ./docker-run.sh --down                     stop the stack; its volumes are kept
#
# Flags of a run: --analysis NAME|FILE, --release NAME, --data DIR|URL, --samples A,B,.., --lumi IFB, --fraction F,
# --pt-cuts A,B,.., --demo-events N, --chunk-entries N, --no-plots, --output DIR, --json, --quiet. README.md,
# Configuration, describes them and their variables, which may also be lines of .env.
#
# Results are written to ./results, or to --output DIR. An analysis FILE is copied to ./analyses, where the services
# read it. The data directory and the variables of the services (ports, broker, key) are kept in .env until --down,
# so that later commands of Compose find the same stack.
set -euo pipefail

kept='# kept by docker-run.sh until --down'
stack_variables="DATA_DIR IMAGE_TAG LOG_LEVEL MANAGEMENT_PORT MESSAGE_KEY PAGE_PORT RABBITMQ_HOST RABBITMQ_IMAGE
    RABBITMQ_PASS RABBITMQ_PORT RABBITMQ_TLS_CA RABBITMQ_USER RABBITMQ_VHOST RESULTS_KEEP"

fail() { echo "docker-run.sh: $1" >&2; exit "${2:-1}"; }
wrong_usage() { fail "$1; see ./docker-run.sh --help" 2; }
trap 'echo; fail interrupted 130' INT

# --- arguments --------------------------------------------------------------------------

for argument; do
    case $argument in --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;; esac
done
word=run flags=() scale=() scaled=() scan=()
case ${1:-} in
    run | runs | cancel | dead-letters | --logs | --down) word=$1; shift ;;
    follow) [ $# -gt 1 ] || wrong_usage "follow needs a RUN_ID"; word=$1 flags=("$2"); shift 2 ;;
    --scale | --scale=*) word=--scale ;;
    --scan | --scan=*) word=--scan ;;
    check | compare) fail "$1 needs no services; use ./local-run.sh $1" 2 ;;
esac
case $word:$* in
    runs:* | cancel:* | dead-letters:* | --down: | --logs:) ;;
    --logs:rabbitmq | --logs:data-loader | --logs:data-processor | --logs:analysis | --logs:visualisation) ;;
    --logs:* | --down:*) wrong_usage "unknown argument '$1'" ;;
    *) while [ $# -gt 0 ]; do
        case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
        case $word:$1 in
            run:--no-plots | run:--json | run:--quiet) flags+=("$1"); shift; continue ;;
            run:--data) data=${2-} ;;
            run:--analysis) analysis=${2-} ;;
            run:--output | follow:--output) output=${2-} ;;
            run:--release | run:--samples | run:--lumi | run:--fraction | run:--pt-cuts | run:--demo-events | run:--chunk-entries)
                flags+=("$1" "${2-}") ;;
            --scale:--scale)
                [[ ${2-} =~ ^(data-loader|data-processor)=[1-9][0-9]*$ ]] ||
                    wrong_usage "--scale ${2-}: write data-loader=N or data-processor=N"
                scale+=("$1" "$2") scaled+=("${2%=*}") ;;
            --scan:--scan)
                [[ ${2-} =~ ^(data-loader|data-processor)=[1-9][0-9]*(,[1-9][0-9]*)+$ ]] ||
                    wrong_usage "--scan ${2-}: write data-loader=N,N,.. or data-processor=N,N,.., with numbers from 1"
                scan+=("$2") ;;
            --scan:--events | --scan:--repeat)
                [[ ${2-} =~ ^[1-9][0-9]*$ ]] || wrong_usage "$1 ${2-}: write a whole number from 1"
                scan+=("$1" "$2") ;;
            --scan:--output) scan+=("$1" "${2-}") ;;
            run:--broker) wrong_usage "--broker is for analysis.py; this script starts its own broker" ;;
            *) wrong_usage "unknown argument '$1'" ;;
        esac
        [ $# -gt 1 ] || wrong_usage "$1 needs a value"
        shift 2
    done ;;
esac

# --- Docker, and the variables as Compose reads them ------------------------------------

caller=$PWD command=$0
cd "$(dirname "$0")"
command -v docker >/dev/null || fail "Docker is not installed; install it, or use ./local-run.sh, which does not need it"
case ${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}')} in
    *://localhost:* | *://127.*) ;;
    ssh:* | tcp:* | http*:*) fail "the Docker engine is on another machine (DOCKER_HOST or docker context), and cannot mount directories of this one; use an engine of this machine, or run the script there" ;;
esac
case $(docker version 2>/dev/null) in
    *Podman*) fail "the engine is Podman, with which Compose cannot build the images and wait for the services everywhere; use Docker Engine (also rootless), or ./local-run.sh, which does not need it" ;;
esac
engine=$(docker info --format '{{.SecurityOptions}}' 2>/dev/null) ||
    fail "the Docker engine does not answer; start it, or use ./local-run.sh, which does not need it"
docker compose version >/dev/null 2>&1 || fail "docker compose is missing; install the Compose plugin, 2.24 or later"
env_file=${COMPOSE_ENV_FILES:-$PWD/.env} env_file=${env_file##*,}
# Only its owner may read it, because it has the key that signs the messages.
(umask 077 && touch "$env_file" && [ -f "$env_file" ] && chmod 600 "$env_file") 2>/dev/null ||
    fail "$env_file must be a file that you can write to and only you can read; correct it, or name another one with COMPOSE_ENV_FILES"
if [ -z "${MESSAGE_KEY:-}" ]; then unset MESSAGE_KEY; fi
environment=$(docker compose config --environment) || true
[ -n "$environment" ] || fail "Compose answers as above; correct the variable in the environment or in $env_file, or install Compose 2.24 or later"
setting() { printf '%s\n' "$environment" | sed -n "s/^$1=//p" | tail -n 1; }
project=$(setting COMPOSE_PROJECT_NAME) page_port=$(setting PAGE_PORT) broker_port=$(setting MANAGEMENT_PORT)
page_port=${page_port:-8080} broker_port=${broker_port:-15672}

# update_services ARGUMENT..: docker compose up; fails if a service is not healthy then, which some versions of Compose do not
update_services() {
    local problems unhealthy
    problems=$(docker compose --progress quiet up --detach --wait --wait-timeout 180 "$@" 2>&1) || true
    case $problems in
        *"already allocated"* | *"already in use"*) fail "a port is taken on this machine: set PAGE_PORT (now $page_port) or MANAGEMENT_PORT (now $broker_port) to another one" ;;
    esac
    unhealthy=$(docker compose ps --all --format '{{.Service}} {{.Health}}' | grep -v ' healthy$' | paste -sd , - || true)
    [ -z "$unhealthy" ] && return
    docker compose logs --tail 20 >&2
    fail "not healthy: $unhealthy; ${problems:+$problems; }the last log lines are above"
}

running=$(docker compose ps --format '{{.Service}} {{.ID}}' 2>/dev/null)
container=$(printf '%s\n' "$running" | sed -n 's/^analysis //p')
terminal=''
if [ -t 0 ] && [ -t 1 ]; then terminal=-it; fi
case $word in
    --down)
        docker compose --profile submit down --remove-orphans
        others=$(grep -v "  $kept\$" "$env_file" || true)
        printf '%s\n' "$others" >"$env_file"
        exit ;;
    --logs) exec docker compose logs --follow "$@" ;;
    --scan)
        # shellcheck source=venv.sh
        . ./venv.sh
        use_venv "$PWD" monitor '220 MB, half a minute' -r monitoring/requirements.txt
        project_folder=$PWD
        cd "$caller"
        COMPOSE_PROJECT_NAME=$project exec python "$project_folder/common/cpu_monitor.py" scan --platform docker "${scan[@]}" ;;
    run) ;;
    *) [ -n "$container" ] || fail "the stack does not run; start it with ./docker-run.sh" ;;
esac
case $word in
    runs | cancel | dead-letters)
        exec docker exec ${terminal:+"$terminal"} --env "COMMAND_NAME=$command" "$container" python analysis.py "$word" "$@" ;;
    --scale)
        update_services --no-deps --no-recreate "${scale[@]}" "${scaled[@]}"
        exit ;;
esac

# --- directories and files of this machine ----------------------------------------------

# given VARIABLE FLAG [VALUE]: set value to that of the flag or else of the variable, and name to that which gave it.
# Paths become absolute: those of .env are relative to it, others to the caller's directory.
given() {
    local base=$caller
    if [ $# -gt 2 ]; then name="$2 " value=$3; else
        name="$1=" value=$(setting "$1")
        [ -n "${!1+x}" ] || base=$PWD
    fi
    case $1=$value in
        *= | *=/* | DATA=*:/* | DATA=*:*@*) ;;  # an address is none
        *=[~]/*) value=$HOME/${value#*/} ;;
        *) value=$base/$value ;;
    esac
}

# hand_over VARIABLE FLAG: pass value to analysis.py as the user gave it, so that its messages name the flag or variable
hand_over() { if [ "$name" = "$1=" ]; then export "$1=$value"; else flags+=("$2" "$value"); fi; }

# check_mount: refuse a directory that would hide one of the container
check_mount() {
    case $value in
        / | /analyses | /app | /app/* | /bin | /cache | /dev | /etc | /lib | /lib64 | /packages | /packages/* | /proc | /run | /sbin | /sys | /tmp | /usr | /usr/local | /var)
            fail "$name$value: containers have a directory of their own there; give a directory within it, or another one" 2 ;;
    esac
}

# check_readable: refuse data that the user of the data-loader cannot read, and links that leave the directory
check_readable() {
    local path found
    found=$(docker compose --progress quiet run --rm --no-deps -T --entrypoint find data-loader -L "$DATA_DIR" -maxdepth 3 \
        \( -type l -o -type d ! -executable -o ! -readable -type d -o ! -readable -name '*.root' \) -print </dev/null 2>/dev/null) || true
    while IFS= read -r path; do
        if [ ! -L "$path" ] && [ -n "$path" ]; then
            fail "$path: the services run as another user, who may not read it; allow it with: chmod -R a+rX '$DATA_DIR'" 2
        elif [ -e "$path" ]; then
            fail "$path is a link that leaves $DATA_DIR, so that containers cannot follow it; give a directory that holds the files" 2
        fi
    done <<<"$found"
}

given OUTPUT --output ${output+"$output"}
value=${value:-$caller/results}
check_mount
mkdir -p "$value" || fail "$name$value: this directory cannot be created" 2
export RESULTS_DIR=$value

if [ "$word" = run ]; then
    given DATA --data ${data+"$data"}
    case $value in
        "")
            earlier=$(setting DATA_DIR)
            [ -z "$earlier" ] || [ -d "$earlier" ] || export DATA_DIR= ;;
        *://*) ;;
        /*)
            [ -d "$value" ] || fail "$name$value: no such directory; give the directory that holds the release's files" 2
            value=$(cd "$value" && pwd -P) || fail "$name$value: you may not enter this directory" 2
            check_mount
            # The path is the same in the container, so that its messages name the user's own.
            export DATA_DIR=$value ;;
        *) fail "${name%[ =]}: an address has two slashes after the colon, like https://host/4lep; a directory, ./ before its name" 2 ;;
    esac
    hand_over DATA --data

    chmod -R a+rX analyses kubernetes/rabbitmq.conf 2>/dev/null || true  # the services have other users
    given ANALYSIS --analysis ${analysis+"$analysis"}
    case $value in *.py)
        [ -r "$value" ] || fail "$name$value: no such file, or it cannot be read" 2
        copy=analyses/${value##*/}
        # It is replaced at once, so that no service reads half of it.
        cmp -s "$value" "$copy" || { cp "$value" "$copy.part" && chmod 644 "$copy.part" && mv -f "$copy.part" "$copy"; } ||
            fail "$PWD/$copy cannot be written, where the services read the analysis"
        # The command reads it under the user's own path, which its messages name.
        export ANALYSIS_FILE=$value ;;
    *) value=${value##*/} ;;
    esac
    hand_over ANALYSIS --analysis
fi

# --- the stack --------------------------------------------------------------------------

# run_under_way: print the id of a run that has not ended, if there is one
run_under_way() {
    docker exec "$container" python analysis.py runs --json 2>/dev/null | tr -d ' \n' | tr '{' '\n' |
        sed -nE 's/.*"run_id":"([^"]*)","state":"(waiting|running|fitting)".*/\1/p' | head -n 1 || true
}

# keep_variables: write the variables of the stack that the environment has to .env
keep_variables() {
    local name value text quote="'" escaped="\\'"
    text=$(cat "$env_file")
    for name in $stack_variables; do
        [ -n "${!name+x}" ] || continue
        value=${!name}
        text=$(printf '%s\n' "$text" | grep -v "^$name=.*  $kept\$" || true)
        text+=$'\n'"$name='${value//$quote/$escaped}'  $kept"
    done
    printf '%s\n' "$text" >"$env_file"
}

# start_stack: build the images, and start the services that do not run or have changed
start_stack() {
    local service number changed run
    if [ -z "$container" ]; then echo "building the images and starting the services: the first time takes minutes" >&2; fi
    ./build-images.sh >/dev/null
    if [ -n "${DATA_DIR:-}" ] && [ "$DATA_DIR" != "$(setting DATA_DIR)" ]; then check_readable; fi
    for service in data-loader data-processor; do  # keep the number of replicas that are running
        number=$(printf '%s\n' "$running" | grep -c "^$service ") || number=1
        scale+=(--scale "$service=$number")
    done
    if [ -n "$container" ]; then
        changed=$(docker compose --dry-run up --detach "${scale[@]}" 2>&1 | sed -nE "s/.* Container $project-(.*)-[0-9]+ +Recreate\$/\1/p" | sort -u | tr '\n' ' ')
        run=$([ -z "$changed" ] || run_under_way)
        [ -z "$run" ] || fail "run $run is under way, and other data, ports or images would restart ${changed% }; wait until it has ended, or: $command cancel $run"
    fi
    keep_variables || fail "$env_file cannot be written; correct it, or name another one with COMPOSE_ENV_FILES"
    update_services "${scale[@]}"
}

# submit ARGUMENT..: run analysis.py in a container of its own, and exit with its code
submit() {
    local user name code run
    case $engine in *rootless*) user=0:0 ;; *) user=$(id -u):$(id -g) ;; esac  # the user who owns the results
    name=$project-submit-$$
    trap 'docker rm --force "$name" >/dev/null 2>&1' EXIT
    run=(docker compose --progress quiet run --name "$name" --no-deps --user "$user" --env "COMMAND_NAME=$command")
    if [ -n "$terminal" ]; then  # the container's terminal gets Ctrl-C
        "${run[@]}" "$@" || true
    else  # in a process group of its own, so that Ctrl-C reaches the container once, through the trap
        set -m
        "${run[@]}" -T "$@" </dev/null &
        set +m
        trap 'docker kill --signal INT "$name" >/dev/null 2>&1' INT TERM HUP
        while kill -0 $! 2>/dev/null; do wait $! || true; done
    fi
    # Compose ends when its output is closed, the run does not; and some versions do not return the exit code.
    until code=$(docker wait "$name" 2>/dev/null); do docker inspect "$name" >/dev/null 2>&1 || exit 1; done
    exit "$code"
}

if [ "$word" = follow ]; then submit --entrypoint "python analysis.py" submit follow "${flags[@]}"; fi

case $(setting RABBITMQ_HOST) in
    localhost | 127.* | ::1) fail "RABBITMQ_HOST=$(setting RABBITMQ_HOST): in a container, this is the container itself; unset it, or give a name that the containers can reach" 2 ;;
    *:*) fail "RABBITMQ_HOST=$(setting RABBITMQ_HOST): give the name of the host instead of its IPv6 address" 2 ;;
esac
given RABBITMQ_TLS_CA ""
[ -z "$value" ] || [ -r "$value" ] || fail "$name$value: no such file, or it cannot be read" 2
[ -z "${RABBITMQ_TLS_CA:-}" ] || export RABBITMQ_TLS_CA=$value
# The key that signs the messages is generated once.
[ -n "$(setting MESSAGE_KEY)" ] || printf '\nMESSAGE_KEY=%s\n' "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" >>"$env_file"

start_stack
echo "all runs: http://127.0.0.1:$page_port/    RabbitMQ: http://127.0.0.1:$broker_port/" >&2
submit submit ${flags[@]+"${flags[@]}"}
