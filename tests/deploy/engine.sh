# Give this shell a Docker engine with the images that the tests of the deployment need. To be sourced from bash: it
# exports what leads docker and testcontainers to the engine, and fails where none can be had.
#
# An engine that answers is taken as it is. Else AGENTBRIDGE_TEST_ENGINE_SCRIPT may name a program that starts one with
# its files in the folder $D, and that writes the exports which lead there to $D/env.sh. HAProxy is pulled, or, where
# that cannot be, is Debian's package under the name of the official image.

engine_start() {
  docker version >/dev/null 2>&1 && return
  if [ -z "${AGENTBRIDGE_TEST_ENGINE_SCRIPT:-}" ]; then
    echo "no Docker engine answers, and AGENTBRIDGE_TEST_ENGINE_SCRIPT names no program that starts one" >&2
    return 1
  fi
  local folder=${TMPDIR:-/tmp}/local-docker
  D=$folder bash "$AGENTBRIDGE_TEST_ENGINE_SCRIPT" >&2 || return
  . "$folder/env.sh"
  # Containers on networks of such an engine may have no way out; builds need one.
  export AGENTBRIDGE_BUILD_NETWORK=${AGENTBRIDGE_BUILD_NETWORK:-host}
}

engine_haproxy() {
  local image
  image=$(sed -n 's/^ *image: \(haproxy:.*\)/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../../compose.yaml")
  docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" >/dev/null 2>&1 && return
  echo "building a stand-in for $image, which cannot be pulled" >&2
  docker build --quiet --network "${AGENTBRIDGE_BUILD_NETWORK:-default}" --tag "$image" - >&2 <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN sed -i s/bookworm/trixie/ $(find /etc/apt/sources.list /etc/apt/sources.list.d -type f) \
 && apt-get update && apt-get install -y --no-install-recommends haproxy busybox \
 && ln -s /usr/bin/busybox /usr/local/bin/wget && rm -rf /var/lib/apt/lists/*
USER haproxy
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
}

engine_start && engine_haproxy
