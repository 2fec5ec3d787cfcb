"""The signature of Standard Webhooks (standardwebhooks.com): HMAC-SHA256 over `id.timestamp.body`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

BASE64_MARK = "whsec_"


def signing_key(secret: str) -> bytes:
    """The key's bytes: base64 after `whsec_`, else the text itself. Raises ValueError, without the secret in it."""
    if not secret.startswith(BASE64_MARK):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(BASE64_MARK), validate=True)
    except binascii.Error:
        raise ValueError(
            f"not base64 after {BASE64_MARK}; expected the secret as the receiver's side shows it"
        ) from None


def signature(key: bytes, id_: str, timestamp_s: int, body: bytes) -> str:
    """What the header `webhook-signature` says; `timestamp_s` is that of `webhook-timestamp`."""
    digest = hmac.new(key, f"{id_}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()
