"""Endpoints and their protection: ipc:// by file permission, tcp:// by CURVE (RFC 26/ZeroMQ CurveZMQ).

`sparsecam keys` writes one pair for the broker and one for its clients (ingest and workers). The broker admits only the
client keys in `clients/`; clients verify the broker's public key. Off loopback there is no link without keys unless the
configuration says so in words.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.thread import ThreadAuthenticator

# sun_path of a Unix socket holds 108 bytes with its closing zero (unix(7)).
MAX_IPC_PATH = 107


class LinkError(ValueError):
    """An endpoint or its keys cannot be used as configured."""


@dataclass(frozen=True)
class CurveKeys:
    """One side's key pair; `server` is the broker's public key, `allowed` the folder of admitted clients' keys."""

    public: bytes
    secret: bytes
    server: bytes
    allowed: Path


def generate_keys(folder: Path) -> list[Path]:
    """Write broker and client key pairs below `folder` (0700, secrets 0600). Raises LinkError if one is there."""
    clients = folder / "clients"
    planned = [folder / name for name in ("broker.key_secret", "broker.key", "client.key_secret")]
    planned.append(clients / "client.key")
    if there := [path for path in planned if path.exists()]:
        raise LinkError(f"{there[0]} exists already: move the old keys away first, every process needs the new ones")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    clients.mkdir(exist_ok=True, mode=0o700)
    old_mask = os.umask(0o077)
    try:
        create_certificates(folder, "broker")
        create_certificates(folder, "client")
    finally:
        os.umask(old_mask)
    (folder / "client.key").rename(clients / "client.key")
    return planned


def load_keys(folder: Path, side: str) -> CurveKeys:
    """Keys of `side` ("broker" or "client") from a folder that `sparsecam keys` wrote. Raises LinkError."""
    try:
        public, secret = load_certificate(folder / f"{side}.key_secret")
        server, _ = load_certificate(folder / ("broker.key" if side == "client" else "broker.key_secret"))
    except (OSError, ValueError) as error:
        raise LinkError(
            f"no usable CURVE keys for the {side} in {folder} ({error}): run `sparsecam keys {folder}`"
        ) from error
    if secret is None:
        raise LinkError(f"{folder}/{side}.key_secret has no secret key: run `sparsecam keys` again")
    return CurveKeys(public, secret, server, folder / "clients")


def check_endpoint(endpoint: str, keys: CurveKeys | None, allow_plaintext: bool) -> None:
    """Raise LinkError for an endpoint that cannot work or that would cross a network in the open."""
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if len(os.fsencode(path)) > MAX_IPC_PATH:
            raise LinkError(f"{endpoint}: a Unix socket's path has {MAX_IPC_PATH} bytes at most: shorten runtime_dir")
        return
    url = urlsplit(endpoint)
    if url.scheme != "tcp" or not url.hostname:
        raise LinkError(f"{endpoint}: expected ipc:///path or tcp://host:port")
    if keys is None and not allow_plaintext and not _is_loopback(url.hostname):
        raise LinkError(
            f"{endpoint} leaves this host without CURVE: run `sparsecam keys DIR` and set link.curve_dir, "
            "or say link.allow_plaintext_off_host: true"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or * for every interface


def protect_server(socket: zmq.Socket[bytes], keys: CurveKeys | None) -> None:
    """Make a socket that will bind speak CURVE with these keys."""
    if keys:
        socket.curve_secretkey, socket.curve_publickey, socket.curve_server = keys.secret, keys.public, True


def protect_client(socket: zmq.Socket[bytes], keys: CurveKeys | None) -> None:
    """Make a socket that will connect speak CURVE with these keys."""
    if keys:
        socket.curve_secretkey, socket.curve_publickey = keys.secret, keys.public
        socket.curve_serverkey = keys.server


def start_authenticator(context: zmq.Context[zmq.Socket[bytes]], keys: CurveKeys | None) -> ThreadAuthenticator | None:
    """Admit only the client keys in keys.allowed (ZAP, RFC 27); stop() the result before the context ends."""
    if keys is None:
        return None
    if not any(keys.allowed.glob("*.key")):
        raise LinkError(f"{keys.allowed} has no client key: nobody could connect; run `sparsecam keys` again")
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=keys.allowed)
    return authenticator
