#!/usr/bin/env bash
# Run an analysis on a Kubernetes cluster: RabbitMQ and the four services as pods.
#
#   ./kubernetes-run.sh [flags of analysis.py]    apply the manifests, submit a run, follow it, copy its results
#   ./kubernetes-run.sh --logs                    follow the logs of the services
#   ./kubernetes-run.sh --down                    delete the workloads; volumes and credentials are kept
#
# --data is an address (http://, https://, root://), because the pods cannot read this machine's directories.
# --analysis FILE is put into the ConfigMap analyses, which is mounted in the pods.
# Environment variables:
#
#   IMAGE_TAG, NAMESPACE           default: latest, atlas
#   REGISTRY                       prefix of the image names, for a cluster that pulls them
#   RABBITMQ_USER, RABBITMQ_PASS   default: atlas, and a random password, kept in the Secret rabbitmq
#   MESSAGE_KEY                    key that signs the messages; default: random, kept in the same Secret
#   RABBITMQ_VHOST                 default: /; kept in the same Secret
#   RABBITMQ_HOST, RABBITMQ_PORT, RABBITMQ_TLS_CA
#                                  another broker than that of the namespace, as in README.md, Configuration
#   RESULTS_KEEP, LOG_LEVEL        as in README.md, Configuration
#   DATA_CLAIM                     a PersistentVolumeClaim to mount as /data, for --data /data
#   HIGH_AVAILABILITY=1            three brokers instead of one
#   AUTOSCALE=hpa|keda             scale data-loader and data-processor by CPU, or by queue depth
#   ROLLOUT_TIMEOUT                seconds to wait for the pods, default 300
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")"

namespace=${NAMESPACE:-atlas}
tag=${IMAGE_TAG:-latest}
services=(data-loader data-processor analysis visualisation)
ours=app.kubernetes.io/part-of=atlas-open-data

fail() { echo "kubernetes-run.sh: $1" >&2; exit "${2:-1}"; }
k() { kubectl --namespace "$namespace" "$@"; }
has_api() { kubectl api-versions | grep -x "$1" >/dev/null; }

# --- arguments ----------------------------------------------------------------

flags=()
output=${OUTPUT:-results}
analysis=${ANALYSIS:-}
check_data() {
    case $1 in
        "" | *://*) ;;
        *:/* | *:*@*) fail "--data: an address has two slashes after the colon, like https://host/4lep" 2 ;;
        /data | /data/*) [ -n "${DATA_CLAIM:-}" ] || fail "--data $1: nothing is mounted there; set DATA_CLAIM to a PersistentVolumeClaim that holds the files, or give an http:// address" 2 ;;
        *) fail "--data $1: the pods cannot read this machine's directories; give an address (http://, https://, root://), or DATA_CLAIM=<PersistentVolumeClaim> and --data /data" 2 ;;
    esac
}
for variable in RELEASE DATA SAMPLES LUMI FRACTION PT_CUTS DEMO_EVENTS CHUNK_ENTRIES; do
    [ -n "${!variable:-}" ] || { [ "$variable" = PT_CUTS ] && [ -n "${PT_CUTS+set}" ]; } || continue
    flags+=("--$(printf %s "$variable" | tr A-Z_ a-z-)=${!variable}")
done
[ "${PLOTS:-1}" = 1 ] || flags+=(--no-plots)
action=run
check_data "${DATA:-}"
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;;
        --down) action=down ;;
        --logs) action=logs ;;
        --data=*) check_data "${1#*=}"; flags+=("$1") ;;
        --output=*) output=${1#*=} ;;
        --analysis=*) analysis=${1#*=} ;;
        --data | --output | --analysis)
            [ $# -gt 1 ] || fail "$1 needs a value" 2
            case $1 in --data) check_data "$2"; flags+=("$1=$2") ;; --output) output=$2 ;; --analysis) analysis=$2 ;; esac
            shift
            ;;
        --broker | --broker=*) fail "--broker is for analysis.py; this script starts its own broker" 2 ;;
        *) flags+=("$1") ;;
    esac
    shift
done
case ${AUTOSCALE:-} in "" | hpa | keda) ;; *) fail "AUTOSCALE='$AUTOSCALE': choose hpa or keda" 2 ;; esac
case $output in /*) ;; *) output=$caller/$output ;; esac
analysis_file=
case $analysis in
    *.py)
        case $analysis in /*) analysis_file=$analysis ;; *) analysis_file=$caller/$analysis ;; esac
        [ -r "$analysis_file" ] || fail "--analysis $analysis: no such file, or it cannot be read" 2
        analysis=${analysis##*/} analysis=${analysis%.py}
        ;;
esac
[ -z "$analysis" ] || flags+=("--analysis=$analysis")
case ${RABBITMQ_HOST:-} in localhost | 127.* | ::1) fail "RABBITMQ_HOST=$RABBITMQ_HOST: in a pod, this is the pod itself; unset it, or give a name that the pods can reach" 2 ;; esac
authority=${RABBITMQ_TLS_CA:-}
case $authority in "" | /*) ;; *) authority=$caller/$authority ;; esac
[ -z "$authority" ] || [ -r "$authority" ] || fail "RABBITMQ_TLS_CA=$authority: no such file, or it cannot be read" 2

# --- checks -------------------------------------------------------------------

command -v kubectl >/dev/null || fail "kubectl is not installed; install it, or use ./docker-run.sh or ./local-run.sh, which do not need it"
kubectl get --raw /version --request-timeout=10s >/dev/null 2>&1 ||
    fail "no Kubernetes cluster answers; start one or select one with 'kubectl config use-context', or use ./docker-run.sh"

if [ "$action" = logs ]; then
    exec kubectl --namespace "$namespace" logs --follow --prefix --max-log-requests=50 --selector="$ours"
fi

if [ "$action" = down ]; then
    kinds=deployment,statefulset,job,service,configmap,networkpolicy,serviceaccount,role,rolebinding,horizontalpodautoscaler,poddisruptionbudget
    if has_api keda.sh/v1alpha1; then kinds+=,scaledobject,triggerauthentication; fi
    k delete "$kinds" --selector="$ours" --ignore-not-found || fail "kubectl delete failed; see above"
    k wait --for=delete pod --selector="$ours" --timeout=180s >/dev/null || fail "some pods did not terminate within 180 s; see 'kubectl -n $namespace get pods'"
    left=$(k get persistentvolumeclaim --selector="$ours" --output=name | sed 's|.*/||' | paste -sd ' ' -)
    echo "kept in the namespace $namespace: the Secret rabbitmq${left:+ and the volumes $left}; 'kubectl delete namespace $namespace' deletes them too"
    exit
fi

for what in deployments.apps services configmaps secrets persistentvolumeclaims jobs.batch networkpolicies.networking.k8s.io; do
    [ "$(k auth can-i create "$what" 2>/dev/null)" = yes ] ||
        fail "you may not create $what in the namespace $namespace; ask the cluster's administrator, or set NAMESPACE to one of yours"
done
if [ -n "${HIGH_AVAILABILITY:-}" ]; then broker=statefulset/rabbitmq; other=deployment/rabbitmq; else broker=deployment/rabbitmq; other=statefulset/rabbitmq; fi
[ -z "$(k get "$other" --ignore-not-found --output=name)" ] ||
    fail "the namespace $namespace has another kind of broker ($other); run ./kubernetes-run.sh --down first, or set another NAMESPACE"
case ${AUTOSCALE:-} in
    hpa) has_api autoscaling/v2 || fail "this cluster has no autoscaling/v2, which AUTOSCALE=hpa needs; use Kubernetes 1.23 or later, or scale by hand: kubectl -n $namespace scale deployment data-processor --replicas=4" ;;
    keda) has_api keda.sh/v1alpha1 || fail "this cluster has no keda.sh/v1alpha1, which AUTOSCALE=keda needs; install KEDA (https://keda.sh), or use AUTOSCALE=hpa" ;;
esac

images=("${services[@]/%/:$tag}")
if [ -z "${REGISTRY:-}" ] && docker info >/dev/null 2>&1; then
    for image in "${images[@]}"; do
        docker image inspect "$image" >/dev/null 2>&1 ||
            fail "the image $image is not on this machine; build it with IMAGE_TAG=$tag ./build-images.sh, or set REGISTRY to where it can be pulled"
    done
    context=$(kubectl config current-context 2>/dev/null || true)
    case $context in
        kind-*) load=(kind load docker-image --name "${context#kind-}") ;;
        minikube) load=(minikube image load) ;;
        *) load=() ;;
    esac
    if [ ${#load[@]} -gt 0 ]; then
        command -v "${load[0]}" >/dev/null || fail "${load[0]} is needed to load the images into the cluster $context, and is not installed"
        echo "loading the images into $context"
        "${load[@]}" "${images[@]}" || fail "the images could not be loaded into $context"
    fi
fi

# --- namespace and credentials --------------------------------------------------

kubectl get namespace "$namespace" >/dev/null 2>&1 ||
    sed "s/^  name: .*/  name: $namespace/" kubernetes/namespace.yaml | kubectl create --filename=- ||
    fail "the namespace $namespace does not exist and you may not create it; ask the cluster's administrator, or set NAMESPACE"

percent_encoded() { # percent_encoded TEXT: print it encoded for a URL
    local LC_ALL=C i c
    for ((i = 0; i < ${#1}; i++)); do
        c=${1:i:1}
        case $c in [A-Za-z0-9._~-]) printf %s "$c" ;; *) printf '%%%02X' "'$c" ;; esac
    done
}
json() { # json TEXT: print it as a JSON string
    local text=$1
    text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    printf '"%s"' "$text"
}
random() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
secret() { k get secret rabbitmq --output="jsonpath={.data.$1}" | base64 --decode; }

kept=$(k get secret rabbitmq --ignore-not-found --output=name) || fail "you may not read Secrets in the namespace $namespace"
if [ -z "$kept" ]; then
    user=${RABBITMQ_USER:-atlas}
    password=${RABBITMQ_PASS:-$(random)}
    printf '%s\n' "RABBITMQ_USER=$user" "RABBITMQ_PASS=$password" "ERLANG_COOKIE=$(random)" \
        "MESSAGE_KEY=${MESSAGE_KEY:-$(random)$(random)}" ${RABBITMQ_VHOST:+"RABBITMQ_VHOST=$RABBITMQ_VHOST"} \
        "AMQP_URI=amqp://$(percent_encoded "$user"):$(percent_encoded "$password")@rabbitmq.$namespace.svc:5672/$(percent_encoded "${RABBITMQ_VHOST:-}")" |
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

# --- the overlay: images, namespace, and this run's Job ---------------------------

job=submit-$(date -u +%Y%m%d-%H%M%S)-$RANDOM
overlay=$(mktemp -d "$PWD/.kubernetes-overlay.XXXXXX")
trap 'rm -rf "$overlay"' EXIT
settings=()
for variable in RABBITMQ_HOST RABBITMQ_PORT RESULTS_KEEP LOG_LEVEL; do
    [ -z "${!variable:-}" ] || settings+=("$variable=${!variable}")
done
if [ -n "$authority" ]; then
    cat "$authority" >"$overlay/ca.pem"
    settings+=("RABBITMQ_TLS_CA=/broker-ca/ca.pem")
fi
{
    printf '%s\n' "apiVersion: kustomize.config.k8s.io/v1beta1" "kind: Kustomization" "namespace: $namespace" \
        "resources: [../kubernetes]" "components:" "  - ../kubernetes/submission"
    [ -z "${HIGH_AVAILABILITY:-}" ] || echo "  - ../kubernetes/high-availability"
    if [ ${#settings[@]} -gt 0 ]; then
        printf '%s\n' "configMapGenerator:" "  - {name: settings, namespace: atlas, behavior: merge, literals: ["
        for setting in "${settings[@]}"; do echo "      $(json "$setting"),"; done
        echo "    ]}"
        [ -z "$authority" ] || echo "  - {name: broker-ca, files: [ca.pem]}"
    fi
    echo "images:"
    for service in "${services[@]}"; do
        echo "  - {name: $service, newName: $(json "${REGISTRY:+${REGISTRY%/}/}$service"), newTag: $(json "$tag")}"
    done
    printf '%s\n' "patches:" "  - target: {kind: Job, name: submit}" "    options: {allowNameChange: true}" "    patch: |-" \
        "      - {op: replace, path: /metadata/name, value: $job}" \
        "      - {op: add, path: /spec/template/spec/containers/0/args, value: ["
    for flag in ${flags[@]+"${flags[@]}"}; do echo "          $(json "$flag"),"; done
    echo "        ]}"
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

apply() { # apply SELECTOR
    k apply --kustomize="$overlay" --selector="$1" >"$overlay/applied" ||
        fail "the cluster rejected the manifests; its messages are above"
    grep -v ' unchanged$' "$overlay/applied" || true
}
if [ -n "$analysis_file" ]; then # the ConfigMap keeps the files of other analyses
    if [ -z "$(k get configmap analyses --ignore-not-found --output=name)" ]; then
        k create configmap analyses && k label configmap analyses "$ours"
    fi
    k create configmap analyses --from-file="$analysis.py=$analysis_file" --dry-run=client --output=json >"$overlay/analyses.json"
    k patch configmap analyses --type=merge --patch-file="$overlay/analyses.json" ||
        fail "the file of the analysis could not be put into the ConfigMap analyses; see above"
fi
apply "app.kubernetes.io/component!=submission"

if [ -n "${AUTOSCALE:-}" ]; then k apply --filename="kubernetes/autoscaling/$AUTOSCALE"; fi
if [ -n "${AUTOSCALE:-}${HIGH_AVAILABILITY:-}" ]; then
    if has_api policy/v1; then k apply --filename=kubernetes/autoscaling/disruption
    else echo "this cluster has no policy/v1; PodDisruptionBudgets are not applied"; fi
fi

# --- wait -------------------------------------------------------------------------

show_pods() { # show_pods SELECTOR: print events and last log lines of the pods that are not ready
    local pod
    {
        k get pods --selector="$1"
        for pod in $(k get pods --selector="$1" --output='jsonpath={range .items[?(@.status.phase!="Succeeded")]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | sed -n 's/ False$//p'); do
            echo "--- $pod: events"
            k get events --field-selector="involvedObject.name=$pod" --sort-by=.lastTimestamp --output='custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message' | tail -n 8
            echo "--- $pod: last log lines"
            k logs "$pod" --all-containers --tail=15 || true
        done
        [ -n "$(k get pods --selector="$1" --output=name)" ] ||
            k get events --field-selector=type=Warning --sort-by=.lastTimestamp | tail -n 8
    } >&2 2>&1
}
stuck_pod() { # stuck_pod SELECTOR: print the first pod that cannot start, and the reason
    k get pods --selector="$1" --output='jsonpath={range .items[*]}{.metadata.deletionTimestamp}{"|"}{.metadata.name}{range .status.initContainerStatuses[*]}{" "}{.state.waiting.reason}{end}{range .status.containerStatuses[*]}{" "}{.state.waiting.reason}{end}{"\n"}{end}' |
        grep -E '^\|.* (ImagePullBackOff|ErrImageNeverPull|InvalidImageName|CreateContainerConfigError|CreateContainerError|CrashLoopBackOff)' | tr -s '| ' ' ' | head -n 1 || true
}
give_up() { # give_up SELECTOR PROBLEM: show the pods and exit
    show_pods "$1"
    case $2 in *Image*) fail "$2: the cluster has no such image; build it with ./build-images.sh, or set REGISTRY to where it can be pulled" ;; esac
    fail "$2; events and last log lines are above"
}
wait_for() { # wait_for WORKLOAD
    local shown='' status name=${1#*/} stuck='' seen=0
    local selector=app.kubernetes.io/name=$name
    while :; do
        status=$(k rollout status "$1" --watch=false 2>&1) || true
        case $status in
            *"successfully rolled out"* | *"roll out complete"* | *"rolling update complete"*) echo "$name is ready"; return ;;
            *"progress deadline"*) give_up "$selector" "$name did not become ready" ;;
        esac
        [ "$status" = "$shown" ] || echo "$name: ${status%%$'\n'*}"
        shown=$status
        stuck=$(stuck_pod "$selector")
        if [ -n "$stuck" ]; then seen=$((seen + 1)); else seen=0; fi
        [ "$seen" -lt 5 ] || give_up "$selector" "$name does not start:$stuck"
        [ "$SECONDS" -lt "$deadline" ] || give_up "$selector" "$name was not ready within ${ROLLOUT_TIMEOUT:-300} s"
        sleep 1
    done
}
deadline=$((SECONDS + ${ROLLOUT_TIMEOUT:-300}))
for workload in "$broker" "${services[@]/#/deployment/}"; do wait_for "$workload"; done

# A changed annotation makes the kubelet update the volumes of a pod at once, and not after a minute or two.
if [ -n "$analysis_file" ]; then
    deadline=$((SECONDS + ${ROLLOUT_TIMEOUT:-300}))
    for pod in $(k get pods --selector="$ours,app.kubernetes.io/component=worker" --output=name); do
        k annotate --overwrite "$pod" "atlas-open-data/analyses=$job" >/dev/null || continue
        until [ "$(k exec "$pod" -- cat "/analyses/$analysis.py" 2>/dev/null)" = "$(cat "$analysis_file")" ]; do
            [ -n "$(k get "$pod" --ignore-not-found --output=name)" ] || break
            [ "$SECONDS" -lt "$deadline" ] || fail "$pod has not got the file of the analysis within ${ROLLOUT_TIMEOUT:-300} s; run again"
            sleep 1
        done
    done
    echo "every pod has the file of the analysis $analysis"
fi

# --- submit, follow, fetch ----------------------------------------------------------

apply "app.kubernetes.io/component=submission"
pod_of_job() { k get pods --selector="job-name=$job" --output="jsonpath={.items[0]$1}" 2>/dev/null || true; }
trap 'echo; fail "interrupted; the run continues in the cluster: kubectl -n $namespace logs -f job/$job"' INT
deadline=$((SECONDS + ${ROLLOUT_TIMEOUT:-300}))
seen=0
until phase=$(pod_of_job .status.phase) && [ "${phase:-Pending}" != Pending ]; do
    stuck=$(stuck_pod "job-name=$job")
    if [ -n "$stuck" ]; then seen=$((seen + 1)); fi
    [ "$seen" -lt 5 ] || give_up "job-name=$job" "the submission does not start:$stuck"
    [ "$SECONDS" -lt "$deadline" ] || give_up "job-name=$job" "the submission did not start"
    sleep 1
done
k logs --follow "job/$job" || true
until code=$(pod_of_job '.status.containerStatuses[0].state.terminated.exitCode') && [ -n "$code" ]; do
    if pods=$(k get pods --selector="job-name=$job" --output=name) && [ -z "$pods" ]; then
        fail "the pod of the submission was deleted; the run continues, and its results will be on the page"
    fi
    k logs --follow --since=1s "job/$job" || sleep 1
done
trap - INT
log=$(k logs "job/$job" | tr -d '\r')
run_id=$(sed -n 's/^run \([A-Za-z0-9._-]*\)$/\1/p' <<<"$log")

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
    mkdir -p "$output"
    mv "$overlay/$run_id" "$output/"
    echo "copied to $output/$run_id/; for the page: kubectl -n $namespace port-forward service/visualisation 8080, then http://127.0.0.1:8080/"
fi
exit "$code"
