#!/bin/sh
# Print fresh secrets for compose.yaml: deploy/secrets.sh > .env
# Each begins with a letter, for NATS takes a password like 12345678 or 7M for a number.
set -eu
umask 077
for name in JWT_SECRET NATS_PASSWORD_GATEWAY NATS_PASSWORD_REGISTRY NATS_PASSWORD_API NATS_PASSWORD_AGENT_DEFAULT \
  NATS_PASSWORD_CONSOLE; do
  echo "AGENTBRIDGE_$name=s$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
done
