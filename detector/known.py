"""Class names of published models that carry none in their files, known by their weights.

The digest is over the weights alone, so a copy with another input shape, metadata or name is known as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from onnx.onnx_ml_pb2 import TensorProto

KNOWN: dict[str, dict[int, str]] = {
    # The two INT8 YOLOv5n of the article that Sparsecam began from, trained on the Pistols dataset (one class).
    "b49b5393f9802233e63dbc0de8218bbe776e84a724f48e19b70f6e27a090cb36": {0: "pistol"},
    "fa30abd8016fb770608c1ec5d49880a5cea46cb43f3306e9063cce880fca6f42": {0: "pistol"},
}


def weights_digest(weights: Iterable[TensorProto]) -> str:
    """SHA-256 over all weights in the order of their names."""
    digest = hashlib.sha256()
    for tensor in sorted(weights, key=lambda tensor: str(tensor.name)):
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}".encode())
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def known_labels(weights: Iterable[TensorProto]) -> dict[int, str] | None:
    """Class names by number, or None for a model nobody listed here."""
    return KNOWN.get(weights_digest(weights))
