#!/usr/bin/env bash
# Run an analysis on a Kubernetes cluster: RabbitMQ and the four services as pods.
#
#   ./kubernetes-run.sh [flags of analysis.py]    apply the manifests, submit a run, follow it, copy its results
#   ./kubernetes-run.sh runs                      list the runs
#   ./kubernetes-run.sh follow RUN_ID             follow a run and copy its results
#   ./kubernetes-run.sh cancel RUN_ID             cancel a run
#   ./kubernetes-run.sh dead-letters [--requeue]  list the messages that could not be handled
#   ./kubernetes-run.sh --scale SERVICE=N ..      set the number of replicas of data-loader or data-processor
#   ./kubernetes-run.sh --scan SERVICE=N,N,..     run with each number of replicas, and show speed-up and what limits it;
#                                                 --events N, --repeat N, --output DIR: see README.md
#   ./kubernetes-run.sh --logs [SERVICE]          follow the logs of the services, or of one
#   ./kubernetes-run.sh --down                    delete the workloads; volumes and credentials are kept
#
# --data is an address (http://, https://, root://), because the pods cannot read this machine's directories.
# --analysis FILE is put into the ConfigMap analyses, which is mounted in the pods. Environment variables:
#
#   NAMESPACE                      default: atlas
#   RABBITMQ_USER, RABBITMQ_PASS   default: atlas, and a random password, kept in the Secret rabbitmq
#   MESSAGE_KEY                    key that signs the messages; default: random, kept in the same Secret
#   RABBITMQ_VHOST                 default: /; kept in the same Secret
#   ROLLOUT_TIMEOUT                seconds to wait for the pods, default 300
#
# These are kept in the ConfigMap kubernetes-run once the pods are ready, until --down, and hold for later calls
# that do not set them:
#
#   IMAGE_TAG                      default: latest
#   REGISTRY                       prefix of the image names, for a cluster that pulls them
#   RABBITMQ_HOST, RABBITMQ_PORT, RABBITMQ_TLS_CA
#                                  another broker than that of the namespace, as in README.md, Configuration
#   RESULTS_KEEP, LOG_LEVEL        as in README.md, Configuration
#   DATA_CLAIM                     a PersistentVolumeClaim to mount as /data, for --data /data
#   HIGH_AVAILABILITY=1            three brokers instead of one
#   AUTOSCALE=hpa|keda             scale data-loader and data-processor by queue depth, see docs/scaling.md
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"

namespace=${NAMESPACE:-atlas}
services=(data-loader data-processor analysis visualisation)
ours=app.kubernetes.io/part-of=atlas-open-data
kept='IMAGE_TAG REGISTRY RABBITMQ_HOST RABBITMQ_PORT RABBITMQ_TLS_CA RESULTS_KEEP LOG_LEVEL DATA_CLAIM HIGH_AVAILABILITY AUTOSCALE'

fail() { echo "kubernetes-run.sh: $1" >&2; exit "${2:-1}"; }
k() { kubectl --namespace "$namespace" "$@"; }
exists() { [ -n "$(k get "$1" --ignore-not-found --output=name)" ]; }
has_api() { kubectl api-versions | grep -x "$1" >/dev/null; }
absolute() { case $1 in /*) printf %s "$1" ;; *) printf %s "$caller/$1" ;; esac; }
is_one_of() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; } # is_one_of WORD "WORD WORD..."

# --- arguments ----------------------------------------------------------------

for argument in "$@"; do
    case $argument in
        --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;;
        --broker | --broker=*) fail "--broker is for analysis.py; this script uses the broker of the namespace" 2 ;;
    esac
done

typed='' quiet=()
named() { # named VARIABLE: print the flag or the variable that gave a setting, with its value
    if is_one_of "$1" "$typed"; then printf -- '--%s %s' "$(printf %s "$1" | tr A-Z_ a-z-)" "${!1}"; else printf '%s=%s' "$1" "${!1}"; fi
}
read_flags() { # read_flags "VARIABLE..." FLAG...: set the variables of the flags of a run
    local known=$1 name value
    shift
    while [ $# -gt 0 ]; do
        name=$(printf %s "${1%%=*}" | tr a-z- A-Z_)
        case $1 in
            --no-plots) PLOTS=0; shift; continue ;;
            --quiet) quiet=(--quiet); shift; continue ;;
            --json) fail "--json is for analysis.py: the log of a pod has everything in one stream; read result.json in the copied folder" 2 ;;
            --?*) is_one_of "${name#__}" "$known" || fail "there is no flag ${1%%=*} here; see --help" 2 ;;
            *) fail "'$1' is neither a flag nor one of runs, follow, cancel and dead-letters; see --help" 2 ;;
        esac
        case $1 in
            *=*) value=${1#*=} ;;
            *) [ $# -gt 1 ] || fail "$1 needs a value" 2; value=$2; shift ;;
        esac
        printf -v "${name#__}" %s "$value"
        typed+=" ${name#__}"
        shift
    done
}

action=${1:-run}
case $action in
    runs | dead-letters) shift ;;
    follow | cancel)
        case ${2:-} in '' | -* | *[!A-Za-z0-9._-]*) fail "$action needs the id of a run; './kubernetes-run.sh runs' lists them" 2 ;; esac
        run_id=$2
        shift 2
        if [ "$action" = follow ]; then read_flags OUTPUT "$@"; else [ $# = 0 ] || fail "cancel takes one run id, not '$*'" 2; fi
        ;;
    --down) [ $# = 1 ] || fail "--down takes no value" 2 ;;
    --logs) [ $# = 1 ] || { [ $# = 2 ] && is_one_of "$2" "${services[*]} rabbitmq"; } || fail "--logs takes one of ${services[*]} rabbitmq" 2 ;;
    --scan | --scan=*)
        action=--scan scan=()
        while [ $# -gt 0 ]; do
            case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
            [ $# -gt 1 ] || fail "$1 needs a value" 2
            case $1 in
                --scan)
                    [[ $2 =~ ^(data-loader|data-processor)=[1-9][0-9]*(,[1-9][0-9]*)+$ ]] ||
                        fail "--scan $2: write data-loader=N,N,.. or data-processor=N,N,.., with numbers from 1" 2
                    scan+=("$2")
                    ;;
                --events | --repeat)
                    [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 $2: write a whole number from 1" 2
                    scan+=("$1" "$2")
                    ;;
                --output) scan+=("$1" "$2") ;;
                *) fail "there is no flag $1 with --scan; see --help" 2 ;;
            esac
            shift 2
        done
        ;;
    --scale | --scale=*)
        action=--scale scaled=()
        while [ $# -gt 0 ]; do
            case $1 in
                --scale=*) scaled+=("${1#*=}") ;;
                --scale) [ $# -gt 1 ] || fail "--scale needs a value, for example data-processor=4" 2; scaled+=("$2"); shift ;;
                *) fail "'$1' is not --scale SERVICE=N" 2 ;;
            esac
            shift
        done
        for pair in "${scaled[@]}"; do
            [[ $pair =~ ^(data-loader|data-processor)=[0-9]+$ ]] ||
                fail "--scale $pair: write data-loader=N or data-processor=N; of the others, a second one would only wait" 2
        done
        ;;
    *)
        [ "$action" != run ] || shift $(($# > 0))
        action=run
        read_flags 'RELEASE DATA SAMPLES LUMI FRACTION PT_CUTS DEMO_EVENTS CHUNK_ENTRIES ANALYSIS OUTPUT' "$@"
        ;;
esac

flags=()
if [ "$action" = run ]; then
    case ${DATA:-} in
        "" | *://* | /data | /data/*) ;;
        *:/* | *:*@*) fail "--data: an address has two slashes after the colon, like https://host/4lep" 2 ;;
        *) fail "$(named DATA): the pods cannot read this machine's directories; give an address (http://, https://, root://), or DATA_CLAIM=<PersistentVolumeClaim> and --data /data" 2 ;;
    esac
    analysis_file=''
    case ${ANALYSIS:-} in
        *.py)
            analysis_file=$(absolute "$ANALYSIS")
            [ -r "$analysis_file" ] || fail "$(named ANALYSIS): no such file, or it cannot be read" 2
            [[ $analysis_file != *:* ]] || fail "$(named ANALYSIS): a path with a colon cannot be mounted in a pod; give the file another one" 2
            analysis=${ANALYSIS##*/} ANALYSIS=${analysis%.py}
            ;;
    esac
    for variable in ANALYSIS RELEASE SAMPLES LUMI FRACTION PT_CUTS DEMO_EVENTS CHUNK_ENTRIES; do
        [ -n "${!variable:-}" ] || { [ "$variable" = PT_CUTS ] && [ -n "${PT_CUTS+set}" ]; } || continue
        value=${!variable}
        # The command reads it under the user's own path, which its messages name.
        [ "$variable" != ANALYSIS ] || value=${analysis_file:-$value}
        flags+=("--$(printf %s "$variable" | tr A-Z_ a-z-)=$value")
    done
    [ "${PLOTS:-1}" = 1 ] || flags+=(--no-plots)
    case ${RABBITMQ_HOST:-} in
        localhost | 127.* | ::1) fail "RABBITMQ_HOST=$RABBITMQ_HOST: in a pod, this is the pod itself; unset it, or give a name that the pods can reach" 2 ;;
        *:*) fail "RABBITMQ_HOST=$RABBITMQ_HOST: give the name of the host instead of its IPv6 address" 2 ;;
    esac
    authority=''
    if [ -n "${RABBITMQ_TLS_CA:-}" ]; then
        authority=$(absolute "$RABBITMQ_TLS_CA")
        [ -r "$authority" ] || fail "RABBITMQ_TLS_CA=$RABBITMQ_TLS_CA: no such file, or it cannot be read" 2
        RABBITMQ_TLS_CA=/broker-ca/ca.pem
    fi
    case ${AUTOSCALE:-} in "" | hpa | keda) ;; *) fail "AUTOSCALE=$AUTOSCALE: choose hpa or keda" 2 ;; esac
fi
if [ "$action" = run ] || [ "$action" = follow ]; then
    OUTPUT=${OUTPUT:-results}
    output=$(absolute "$OUTPUT")
    mkdir -p "$output" 2>/dev/null && [ -w "$output" ] || fail "$(named OUTPUT): this directory cannot be created or written to" 2
fi

# --- the cluster --------------------------------------------------------------

command -v kubectl >/dev/null || fail "kubectl is not installed; install it, or use ./docker-run.sh or ./local-run.sh, which do not need it"
kubectl get --raw /version --request-timeout=10s >/dev/null 2>&1 ||
    fail "no Kubernetes cluster answers; start one or select one with 'kubectl config use-context', or use ./docker-run.sh"

# shellcheck disable=SC2086  # a list of words
[ "$action" = run ] || unset $kept
before=''
while IFS= read -r line; do
    name=${line%%=*}
    [ "$name" != AUTOSCALE ] || before=${line#*=}
    ! is_one_of "$name" "$kept" || [ -n "${!name+set}" ] || printf -v "$name" %s "${line#*=}"
done <<<"$(k get configmap kubernetes-run --ignore-not-found --output='jsonpath={.data.environment}' 2>/dev/null)"
IMAGE_TAG=${IMAGE_TAG:-latest}

down() {
    local kinds=deployment,statefulset,job,service,configmap,secret,networkpolicy,serviceaccount,role,rolebinding,horizontalpodautoscaler,poddisruptionbudget left
    if has_api keda.sh/v1alpha1; then kinds+=,scaledobject,triggerauthentication; fi
    k delete "$kinds" --selector="$ours" --ignore-not-found || fail "kubectl delete failed; see above"
    k wait --for=delete pod --selector="$ours" --timeout=180s >/dev/null || fail "some pods did not terminate within 180 s; see 'kubectl -n $namespace get pods'"
    left=$(k get persistentvolumeclaim --selector="$ours" --output=name | sed 's|.*/||' | paste -sd ' ' -)
    echo "kept in the namespace $namespace: the Secret rabbitmq${left:+ and the volumes $left}; 'kubectl delete namespace $namespace' deletes them too"
}

if [ "$action" = --down ]; then down; exit; fi
if [ "$action" != run ] && [ "$action" != --scan ]; then
    exists deployment/analysis || fail "the pipeline does not run in the namespace $namespace; start it with ./kubernetes-run.sh, or set NAMESPACE"
fi
case $action in
    --logs) exec kubectl --namespace "$namespace" logs --follow --prefix --max-log-requests=50 --selector="$ours${2:+,app.kubernetes.io/name=$2}" ;;
    --scale)
        [ -z "${AUTOSCALE:-}" ] || fail "AUTOSCALE=$AUTOSCALE sets the number of replicas; 'AUTOSCALE= ./kubernetes-run.sh' ends that"
        for pair in "${scaled[@]}"; do k scale "deployment/${pair%=*}" --replicas="${pair#*=}"; done
        for pair in "${scaled[@]}"; do k rollout status "deployment/${pair%=*}" --timeout="${ROLLOUT_TIMEOUT:-300}s"; done
        exit
        ;;
    --scan)
        [ -z "${AUTOSCALE:-}" ] || fail "AUTOSCALE=$AUTOSCALE sets the number of replicas; 'AUTOSCALE= ./kubernetes-run.sh' ends that"
        # shellcheck source=venv.sh
        . ./venv.sh
        use_venv "$PWD" monitor-kubernetes '260 MB, half a minute' -r monitoring/requirements.txt kubernetes
        project_folder=$PWD
        cd "$caller"
        NAMESPACE=$namespace exec python "$project_folder/common/cpu_monitor.py" scan --platform kubernetes "${scan[@]}"
        ;;
    runs | cancel | dead-letters)
        [ "$action" != cancel ] || set -- "$run_id"
        columns=''
        [ ! -t 1 ] || columns=$(tput cols 2>/dev/null || true)
        # shellcheck disable=SC2016  # the variables are those of the pod
        exec kubectl --namespace "$namespace" exec deployment/analysis -- env COMMAND_NAME=./kubernetes-run.sh COLUMNS="$columns" \
            sh -c 'exec python analysis.py "$@" --broker "amqp://${RABBITMQ_HOST:-rabbitmq}${RABBITMQ_PORT:+:$RABBITMQ_PORT}"' sh "$action" "$@"
        ;;
esac

if [ "$action" = run ]; then
    case ${DATA:-} in /data | /data/*) [ -n "${DATA_CLAIM:-}" ] || fail "$(named DATA): nothing is mounted there; set DATA_CLAIM to a PersistentVolumeClaim that holds the files, or give an http:// address" 2 ;; esac
    for what in deployments.apps services configmaps secrets persistentvolumeclaims jobs.batch networkpolicies.networking.k8s.io pods/exec; do
        [ "$(k auth can-i create "$what" 2>/dev/null)" = yes ] ||
            fail "you may not create $what in the namespace $namespace; ask the cluster's administrator, or set NAMESPACE to one of yours"
    done
    broker=deployment/rabbitmq other=statefulset/rabbitmq
    [ -z "${HIGH_AVAILABILITY:-}" ] || broker=statefulset/rabbitmq other=deployment/rabbitmq
    ! exists "$other" || fail "the namespace $namespace has another kind of broker ($other); run ./kubernetes-run.sh --down first, or set another NAMESPACE"
    case ${AUTOSCALE:-} in
        hpa) has_api external.metrics.k8s.io/v1beta1 || fail "this cluster has no external.metrics.k8s.io, which AUTOSCALE=hpa needs; install prometheus-adapter as in docs/scaling.md, or scale by hand: ./kubernetes-run.sh --scale data-processor=4" ;;
        keda) has_api keda.sh/v1alpha1 || fail "this cluster has no keda.sh/v1alpha1, which AUTOSCALE=keda needs; install KEDA (https://keda.sh), or scale by hand: ./kubernetes-run.sh --scale data-processor=4" ;;
    esac
    [ -z "${AUTOSCALE:-}" ] || [ -z "${RABBITMQ_HOST:-}" ] || fail "AUTOSCALE=$AUTOSCALE counts the messages of the broker in the namespace; unset it, or RABBITMQ_HOST"
    [ -z "${DATA_CLAIM:-}" ] || exists "persistentvolumeclaim/$DATA_CLAIM" || fail "DATA_CLAIM=$DATA_CLAIM: the namespace $namespace has no such PersistentVolumeClaim"
    if ! exists persistentvolumeclaim/database && classes=$(kubectl get storageclass --output=yaml 2>/dev/null) && [ -n "$classes" ]; then
        grep -q 'is-default-class: "true"' <<<"$classes" ||
            fail "this cluster has no default StorageClass for the volumes; mark one with 'kubectl annotate storageclass NAME storageclass.kubernetes.io/is-default-class=true', or create the claims in kubernetes/volumes.yaml yourself"
    fi
    images=("${services[@]/#/atlas-open-data/}") images=("${images[@]/%/:$IMAGE_TAG}")
    if [ -z "${REGISTRY:-}" ] && docker info >/dev/null 2>&1; then
        for image in "${images[@]}"; do
            docker image inspect "$image" >/dev/null 2>&1 ||
                fail "the image $image is not on this machine; build it with IMAGE_TAG=$IMAGE_TAG ./build-images.sh, or set REGISTRY to where it can be pulled"
        done
        context=$(kubectl config current-context 2>/dev/null || true)
        case $context in
            kind-*) load=(kind load docker-image --name "${context#kind-}") ;;
            minikube) load=(minikube image load) ;;
        esac
        if [ -n "${load+set}" ]; then
            command -v "${load[0]}" >/dev/null || fail "${load[0]} is needed to load the images into the cluster $context, and is not installed"
            echo "loading the images into $context"
            "${load[@]}" "${images[@]}" || fail "the images could not be loaded into $context"
        fi
    fi
fi

# --- namespace and credentials --------------------------------------------------

trap 'fail "interrupted; no run was submitted" 130' INT
kubectl get namespace "$namespace" >/dev/null 2>&1 ||
    sed "s/^  name: .*/  name: $namespace/" kubernetes/namespace.yaml | kubectl create --filename=- ||
    fail "the namespace $namespace does not exist and you may not create it; ask the cluster's administrator, or set NAMESPACE"

json() { # json TEXT: print it as a JSON string
    local text=$1
    text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    printf '"%s"' "$text"
}
random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
secret() { k get secret rabbitmq --output="jsonpath={.data.$1}" | base64 --decode; }

has_secret=$(k get secret rabbitmq --ignore-not-found --output=name) || fail "you may not read Secrets in the namespace $namespace"
if [ -z "$has_secret" ]; then
    printf '%s\n' "RABBITMQ_USER=${RABBITMQ_USER:-atlas}" "RABBITMQ_PASS=${RABBITMQ_PASS:-$(random)}" "ERLANG_COOKIE=$(random)" \
        "MESSAGE_KEY=${MESSAGE_KEY:-$(random)$(random)}" ${RABBITMQ_VHOST:+"RABBITMQ_VHOST=$RABBITMQ_VHOST"} |
        k create secret generic rabbitmq --from-env-file=/dev/stdin
else
    if [ -z "$(secret MESSAGE_KEY)" ]; then  # the Secret was created by a version that did not sign messages
        printf '{"stringData": {"MESSAGE_KEY": %s}}' "$(json "${MESSAGE_KEY:-$(random)$(random)}")" |
            k patch secret rabbitmq --type=merge --patch-file=/dev/stdin
    fi
    for variable in RABBITMQ_USER RABBITMQ_PASS RABBITMQ_VHOST MESSAGE_KEY; do
        [ -z "${!variable:-}" ] || [ "${!variable}" = "$(secret "$variable")" ] ||
            fail "$variable differs from the one that the broker in the namespace $namespace was created with; unset it, or run 'kubectl delete namespace $namespace' first"
    done
fi

# --- the overlay: images, namespace, and the Job of this call ---------------------

job=submit-$(date -u +%Y%m%d-%H%M%S)-$RANDOM
overlay=$(mktemp -d "${TMPDIR:-/tmp}/kubernetes-run.XXXXXX")
trap 'rm -rf "$overlay"' EXIT
cp -R kubernetes "$overlay"
[ "$action" = run ] || flags=(follow "$run_id")
flags+=(${quiet[@]+"${quiet[@]}"})
set_ones() { # set_ones VARIABLE...: print those that are set
    local variable
    for variable in "$@"; do [ -z "${!variable:-}" ] || printf '%s=%s\n' "$variable" "${!variable}"; done
}
# shellcheck disable=SC2086  # a list of words
set_ones $kept >"$overlay/environment"
set_ones RABBITMQ_HOST RABBITMQ_PORT RABBITMQ_TLS_CA RESULTS_KEEP LOG_LEVEL >"$overlay/settings.env"
set_ones DATA >"$overlay/data.env"
options="options: {disableNameSuffixHash: true, labels: {${ours/=/: }"
{
    printf '%s\n' "apiVersion: kustomize.config.k8s.io/v1beta1" "kind: Kustomization" "namespace: $namespace" \
        "resources: [kubernetes]" "components:" "  - kubernetes/submission"
    [ -z "${HIGH_AVAILABILITY:-}" ] || echo "  - kubernetes/high-availability"
    echo "configMapGenerator:"
    echo "  - {name: settings, namespace: atlas, behavior: merge, envs: [settings.env]}"
    echo "  - {name: kubernetes-run, files: [environment], $options, app.kubernetes.io/component: kept}}}"
    if [ -n "${authority:-}" ]; then
        cat "$authority" >"$overlay/ca.pem"
        echo "  - {name: broker-ca, files: [ca.pem], $options}}}"
    fi
    # An address may hold a password.
    [ -z "${DATA:-}" ] || printf '%s\n' "secretGenerator:" "  - {name: $job, envs: [data.env], $options, app.kubernetes.io/component: submission}}}"
    echo "images:"
    for service in "${services[@]}"; do
        echo "  - {name: atlas-open-data/$service, newName: $(json "${REGISTRY:+${REGISTRY%/}/}atlas-open-data/$service"), newTag: $(json "$IMAGE_TAG")}"
    done
    printf '%s\n' "patches:" "  - target: {kind: Job, name: submit}" "    options: {allowNameChange: true}" "    patch: |-" \
        "      - {op: replace, path: /metadata/name, value: $job}" \
        "      - {op: add, path: /spec/template/spec/containers/0/args, value: ["
    for flag in ${flags[@]+"${flags[@]}"}; do echo "          $(json "$flag"),"; done
    echo "        ]}"
    [ -z "${DATA:-}" ] ||
        echo "      - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: DATA, valueFrom: {secretKeyRef: {name: $job, key: DATA}}}}"
    [ -z "${analysis_file:-}" ] ||
        echo "      - {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: analyses, mountPath: $(json "$analysis_file"), subPath: $(json "$ANALYSIS.py"), readOnly: true}}"
    if [ -t 1 ]; then
        printf '%s\n' "      - {op: add, path: /spec/template/spec/containers/0/tty, value: true}" \
            "      - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: COLUMNS, value: \"$(tput cols 2>/dev/null || echo 100)\"}}"
    fi
    if [ -n "${DATA_CLAIM:-}" ]; then
        printf '%s\n' "  - target: {kind: Deployment, name: data-loader}" "    patch: |-" \
            "      - {op: add, path: /spec/template/spec/volumes/-, value: {name: data, persistentVolumeClaim: {claimName: $DATA_CLAIM, readOnly: true}}}" \
            "      - {op: add, path: /spec/template/spec/containers/0/volumeMounts/-, value: {name: data, mountPath: /data, readOnly: true}}"
    fi
} >"$overlay/kustomization.yaml"

is_new=''
exists deployment/analysis || is_new=1
refuse() { # refuse PROBLEM: exit; a pipeline that did not run before is taken down
    [ -z "$is_new" ] || down >/dev/null 2>&1 || true
    fail "$1${is_new:+; everything but the volumes and the Secret was deleted again}"
}
apply() { # apply SELECTOR
    k apply --kustomize="$overlay" --selector="$1" >"$overlay/applied" 2>"$overlay/problems" || {
        cat "$overlay/problems" >&2
        refuse "the cluster rejected the manifests; its messages are above"
    }
    grep -v ' unchanged$' "$overlay/applied" || true
}

# --- apply and wait ---------------------------------------------------------------

give_up() { # give_up SELECTOR PROBLEM: show events and the last log lines, and exit
    {
        k get pods --selector="$1"
        k get events --field-selector=type=Warning --sort-by=.lastTimestamp --output='custom-columns=POD:.involvedObject.name,REASON:.reason,MESSAGE:.message' | tail -n 20
        k logs --selector="$1" --all-containers --prefix --tail=15 || true
    } >&2 2>&1
    case $2 in *Image*) fail "$2: the cluster has no such image; build it with ./build-images.sh, or set REGISTRY to where it can be pulled" ;; esac
    fail "$2; events and last log lines are above"
}
wait_for() { # wait_for SELECTOR NAME COMMAND...: wait until a command succeeds, or exit because pods cannot start
    local selector=$1 name=$2 seen=0 stuck rejected
    shift 2
    until "$@"; do
        stuck=$(k get pods --selector="$selector" --output='jsonpath={range .items[*]}{.metadata.deletionTimestamp}{"|"}{.metadata.name}{range .status.containerStatuses[*]}{" "}{.state.waiting.reason}{end}{"\n"}{end}' |
            grep -E '^\|.* (ImagePullBackOff|ErrImageNeverPull|InvalidImageName|CreateContainerConfigError|CreateContainerError|CrashLoopBackOff)' | tr -s '| ' ' ' | head -n 1 || true)
        rejected=$(
            k get deployments --selector="$ours" --output='jsonpath={range .items[*]}{.status.conditions[?(@.type=="ReplicaFailure")].message}{"\n"}{end}'
            k get events --field-selector="reason=FailedCreate,involvedObject.name=$job" --output='jsonpath={range .items[*]}{.message}{"\n"}{end}'
        )
        rejected=$(printf %s "$rejected" | sed -n '/./{p;q;}')
        if [ -n "$stuck$rejected" ]; then seen=$((seen + 1)); else seen=0; fi
        [ "$seen" -lt 5 ] || [ -z "$stuck" ] || give_up "$selector" "$name does not start:$stuck"
        [ "$seen" -lt 5 ] || refuse "the namespace $namespace does not permit the pods: $rejected"
        [ "$SECONDS" -lt "$deadline" ] || give_up "$selector" "$name was not ready within ${ROLLOUT_TIMEOUT:-300} s"
        sleep 1
    done
}
# shellcheck disable=SC2329  # an argument of wait_for
is_rolled_out() { [[ $(k rollout status "$1" --watch=false 2>&1) =~ successfully\ rolled\ out|roll\ out\ complete|rolling\ update\ complete ]]; }

deadline=$((SECONDS + ${ROLLOUT_TIMEOUT:-300}))
if [ "$action" = run ]; then
    if [ -n "$analysis_file" ]; then # the ConfigMap keeps the files of other analyses
        exists configmap/analyses || { k create configmap analyses && k label configmap analyses "$ours"; }
        k create configmap analyses --from-file="$ANALYSIS.py=$analysis_file" --dry-run=client --output=json >"$overlay/analyses.json"
        k patch configmap analyses --type=merge --patch-file="$overlay/analyses.json" ||
            fail "the file of the analysis could not be put into the ConfigMap analyses; see above"
    fi
    apply "app.kubernetes.io/component notin (submission, kept)"

    [ -z "$before" ] || [ "$before" = "${AUTOSCALE:-}" ] || k delete --filename="kubernetes/autoscaling/$before" --ignore-not-found
    if [ "${AUTOSCALE:-}" = keda ]; then
        # KEDA reads the queues through the broker's management interface, from another namespace.
        encoded() { secret "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g'; }
        printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: rabbitmq-management, labels: {%s}}\nstringData: {host: "http://%s:%s@rabbitmq.%s.svc:15672/%s"}\n' \
            "${ours/=/: }" "$(encoded RABBITMQ_USER)" "$(encoded RABBITMQ_PASS)" "$namespace" "$(encoded RABBITMQ_VHOST)" |
            k apply --filename=-
    fi
    if [ -n "${AUTOSCALE:-}" ]; then k apply --filename="kubernetes/autoscaling/$AUTOSCALE"; fi
    if [ -n "${AUTOSCALE:-}${HIGH_AVAILABILITY:-}" ]; then
        ! has_api policy/v1 || k apply --filename=kubernetes/autoscaling/disruption
    fi

    for workload in "$broker" "${services[@]/#/deployment/}"; do
        wait_for "app.kubernetes.io/name=${workload#*/}" "${workload#*/}" is_rolled_out "$workload"
        echo "${workload#*/} is ready"
    done
    apply "app.kubernetes.io/component=kept"

    # A changed annotation makes the kubelet update the volumes of a pod at once, and not after a minute or two.
    if [ -n "$analysis_file" ]; then
        for pod in $(k get pods --selector="$ours,app.kubernetes.io/component=worker" --output=name); do
            k annotate --overwrite "$pod" "atlas-open-data/analyses=$job" >/dev/null || continue
            until [ "$(k exec "$pod" -- cat "/analyses/$ANALYSIS.py" 2>/dev/null)" = "$(cat "$analysis_file")" ] || ! exists "$pod"; do
                [ "$SECONDS" -lt "$deadline" ] || fail "$pod has not got the file of the analysis within ${ROLLOUT_TIMEOUT:-300} s; run again"
                sleep 1
            done
        done
        echo "every pod has the file of the analysis $ANALYSIS"
    fi
fi

# --- submit, follow, fetch ----------------------------------------------------------

job_log() { k logs "job/$job" 2>/dev/null | tr -d '\r'; }
id_of_run() { sed -n 's/^run \([A-Za-z0-9._-]*\)$/\1/p' | head -n 1; }
# shellcheck disable=SC2329  # called by a trap
detach() {
    trap '' INT
    [ -n "${run_id:-}" ] || run_id=$(job_log | id_of_run)
    k delete "job/$job" --wait=false >/dev/null 2>&1 || true # the run goes on in the services
    echo >&2
    [ -n "$run_id" ] || fail "interrupted; './kubernetes-run.sh runs' says whether the run was submitted" 130
    fail "interrupted; the run continues in the cluster: './kubernetes-run.sh follow $run_id' follows it, './kubernetes-run.sh cancel $run_id' cancels it" 130
}
trap detach INT HUP TERM
apply "app.kubernetes.io/component=submission"
if [ -n "${DATA:-}" ]; then # the Secret with the address is deleted with the Job
    k patch secret "$job" --type=merge --patch="{\"metadata\": {\"ownerReferences\": [{\"apiVersion\": \"batch/v1\", \"kind\": \"Job\", \"name\": \"$job\",
        \"uid\": \"$(k get "job/$job" --output='jsonpath={.metadata.uid}')\"}]}}" >/dev/null
fi
pod_of_job() { k get pods --selector="job-name=$job" --output="jsonpath={.items[0]$1}" 2>/dev/null || true; }
# shellcheck disable=SC2329  # an argument of wait_for
has_started() { [[ $(pod_of_job .status.phase) =~ Running|Succeeded|Failed ]]; }
deadline=$((SECONDS + ${ROLLOUT_TIMEOUT:-300}))
wait_for "job-name=$job" "the submission" has_started
k logs --follow "job/$job" || true
until code=$(pod_of_job '.status.containerStatuses[0].state.terminated.exitCode') && [ -n "$code" ]; do
    if pods=$(k get pods --selector="job-name=$job" --output=name) && [ -z "$pods" ]; then
        fail "the pod of the submission was deleted; the run continues: './kubernetes-run.sh runs' lists it"
    fi
    k logs --follow --since=1s "job/$job" || sleep 1
done
log=$(job_log)
[ -n "${run_id:-}" ] || run_id=$(id_of_run <<<"$log")

fetch() {
    # Without --no-same-owner, GNU tar as root would keep the pod's owner.
    k exec deployment/visualisation -- tar -C /results -cf - "$run_id" 2>/dev/null | tar -C "$overlay" --no-same-owner -xf - 2>/dev/null
}
if [[ $log == *"results in "* ]]; then
    deadline=$((SECONDS + 60))
    until fetch; do
        [ "$SECONDS" -lt "$deadline" ] || fail "the results of $run_id could not be copied; they are on the volume 'results' of the namespace $namespace"
        sleep 1
    done
    cp -R "$overlay/$run_id" "$output/"
    echo "copied to $output/$run_id/; for the page: kubectl -n $namespace port-forward service/visualisation 8080, then http://127.0.0.1:8080/"
fi
exit "$code"
