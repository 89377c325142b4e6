# Give this shell a Docker engine with the images that the tests of the deployment need. Source it: it exports what
# leads docker and testcontainers to the engine, and fails where none can be had.
#
# An engine that answers is taken as it is. Else AGENTBRIDGE_TEST_ENGINE_SCRIPT may name a program that starts one in the
# folder $D and writes the exports that lead to it to $D/env.sh. HAProxy comes from its official image, or, where that
# cannot be pulled, as Debian's package under the same name, built with AGENTBRIDGE_BUILD_NETWORK.

engine_start() {
  docker version >/dev/null 2>&1 && return
  if [ -z "${AGENTBRIDGE_TEST_ENGINE_SCRIPT:-}" ]; then
    echo "no Docker engine answers, and AGENTBRIDGE_TEST_ENGINE_SCRIPT names no program that starts one" >&2
    return 1
  fi
  export D=${D:-${TMPDIR:-/tmp}/local-docker}
  "$AGENTBRIDGE_TEST_ENGINE_SCRIPT" >&2 || return
  . "$D/env.sh"
  # Such an engine may have no way out for the containers of its own networks, and no images but those it made.
  export AGENTBRIDGE_BUILD_NETWORK=${AGENTBRIDGE_BUILD_NETWORK:-host}
}

engine_image() { # IMAGE: have it, by whatever way
  docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" >&2
}

engine_haproxy() { # IMAGE
  engine_image "$1" && return
  docker build --quiet --network "${AGENTBRIDGE_BUILD_NETWORK:-default}" --tag "$1" - >&2 <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN sed -i s/bookworm/trixie/ /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null; \
    apt-get update && apt-get install -y --no-install-recommends haproxy busybox \
 && ln -s /usr/bin/busybox /usr/local/bin/wget && rm -rf /var/lib/apt/lists/*
USER haproxy
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
}

engine_start && engine_haproxy haproxy:3.0-alpine
