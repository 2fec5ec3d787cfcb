"""What crosses a process boundary: messages, the ZeroMQ frame link, Redis streams, metrics, health, logs.

Enters: letterboxed frames from `ingest`, detections from `detector`, alerts from `sink`.
Leaves: the same, at the other end, each frame settled exactly once in its camera's ledger.
Imported by every other room; imports none of them.
"""
