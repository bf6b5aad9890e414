#!/usr/bin/env bash
# Build the images of the four services and print their sizes.
#
#   [IMAGE_TAG=latest] ./build-images.sh
set -euo pipefail
cd "$(dirname "$0")"
tag=${IMAGE_TAG:-latest}
services=(data-loader data-processor analysis visualisation)

case ${1:-} in
    --help | -h) sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p;}' "$0"; exit ;;
esac

docker info >/dev/null 2>&1 || {
    echo "build-images.sh: no Docker engine answers; start Docker, or use ./local-run.sh, which does not need it" >&2
    exit 1
}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
builds=()
for service in "${services[@]}"; do
    DOCKER_BUILDKIT=1 docker build --tag "$service:$tag" --file "workers/${service//-/_}/Dockerfile" . >"$logs/$service" 2>&1 &
    builds+=($!)
done
failed=0
for number in "${!services[@]}"; do
    service=${services[number]}
    wait "${builds[number]}" || {
        tail -n 20 "$logs/$service" >&2
        echo "build-images.sh: the image $service:$tag could not be built" >&2
        failed=1
    }
done
[ "$failed" = 0 ] || exit 1

for service in "${services[@]}"; do
    size=$(docker image inspect --format '{{.Size}}' "$service:$tag")
    printf '%-24s %4d MB\n' "$service:$tag" $((size / 1000000))
done
