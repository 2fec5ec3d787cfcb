#!/bin/sh
# Healthy: the server answers the user that Sparsecam uses. The password goes by the environment, not by the process list.
set -eu

if command -v valkey-cli >/dev/null; then
    # Newer clients read the first name, older ones and Redis's the second.
    export VALKEYCLI_AUTH="$VALKEY_PASSWORD" REDISCLI_AUTH="$VALKEY_PASSWORD"
    [ "$(valkey-cli --user sparsecam --no-auth-warning ping)" = PONG ]
else # in the Sparsecam image (compose.one-image.yaml) there is the server and redis-py, but no valkey-cli
    exec python3 -c 'import os, redis
redis.Redis(username="sparsecam", password=os.environ["VALKEY_PASSWORD"], socket_timeout=2).ping()'
fi
