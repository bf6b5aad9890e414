#!/usr/bin/env bash
# Build the images of the four services and print their sizes.
#
#   ./build-images.sh
#
# The images are atlas-open-data/SERVICE:TAG, and SERVICE:TAG too. TAG is IMAGE_TAG of the environment or of .env,
# by default latest.
set -euo pipefail

usage() { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; }
fail() { echo "build-images.sh: $1" >&2; exit "${2:-1}"; }

case ${1:-} in
    "") ;;
    --help | -h) usage; exit ;;
    *) fail "unknown argument '$1'; see ./build-images.sh --help" 2 ;;
esac

cd "$(dirname "$0")"
docker info >/dev/null 2>&1 || fail "no Docker engine answers; start Docker, or use ./local-run.sh, which does not need it"
tag=${IMAGE_TAG-$(docker compose config --environment 2>/dev/null | sed -n 's/^IMAGE_TAG=//p')}
tag=${tag:-latest}
services=(data-loader data-processor analysis visualisation)
# Results name the commit that the services were built from.
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)

# A builder in a container keeps an image to itself unless it is to load it into the engine.
load=''
! docker buildx version >/dev/null 2>&1 || load=--load

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
builds=()
for service in "${services[@]}"; do
    DOCKER_BUILDKIT=1 docker build ${load:+"$load"} --tag "atlas-open-data/$service:$tag" --tag "$service:$tag" \
        --build-arg "SOURCE_COMMIT=$commit" --file "workers/${service//-/_}/Dockerfile" . >"$logs/$service" 2>&1 &
    builds+=($!)
done
failed=""
for number in 0 1 2 3; do
    service=${services[number]}
    wait "${builds[number]}" || {
        tail -n 20 "$logs/$service" >&2
        failed+=" atlas-open-data/$service:$tag"
    }
done
[ -z "$failed" ] || fail "these images could not be built:$failed"

for service in "${services[@]}"; do
    size=$(docker image inspect --format '{{.Size}}' "atlas-open-data/$service:$tag")
    printf '%-40s %4d MB\n' "atlas-open-data/$service:$tag" $((size / 1000000))
done
