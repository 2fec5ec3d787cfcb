"""From alerts to the world: webhook, MQTT, Apprise, disk, command.

Enters: the stream `sparsecam:alerts`, which each output follows on a thread and with a consumer group of its own.
Leaves: each alert that the output's settings want, delivered at least once under the same key, or put aside in the
stream `sparsecam:deadletters:NAME` with the reason. Nothing an output does holds up another one or the sink.
`delivery.py` says what an output is; `runner.py` when it is tried; `reader.py` what Redis is told. Imports `wire` only.
"""
