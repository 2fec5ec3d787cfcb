#!/bin/sh
# Writes the ACL from $VALKEY_PASSWORD into memory (/tmp is a tmpfs) and becomes the server. Only the password's SHA-256 reaches
# the file; nothing reaches the process list.
set -eu
umask 077

if [ -z "${VALKEY_PASSWORD:-}" ]; then
    echo "start.sh: VALKEY_PASSWORD is empty; set SPARSECAM_REDIS_PASSWORD in deploy/.env" >&2
    exit 1
fi
digest=$(printf %s "$VALKEY_PASSWORD" | sha256sum | cut -d ' ' -f 1)
unset VALKEY_PASSWORD

# `sparsecam` may do everything with its own keys and channels; @admin (CONFIG, ACL, SHUTDOWN, REPLICAOF, ...) is nobody's.
cat > /tmp/users.acl <<ACL
user default off
user sparsecam on #$digest ~sparsecam:* &sparsecam:* +@all -@admin
ACL

exec valkey-server /etc/valkey/valkey.conf --aclfile /tmp/users.acl
