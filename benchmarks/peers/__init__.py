"""Sparsecam beside what its users would run instead: same video, model and cores, in turns, a process each.

`python -m benchmarks.peers --table` (or `--json`). One file a peer; `protocol.py` is all that a peer shares with the
driver, and uses nothing but Python's own library, so that it runs in every peer's environment.
"""
