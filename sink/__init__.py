"""From boxes to alerts: order, tracks, rules, incidents, delivery.

Enters: the detections of every camera, from the Redis streams `sparsecam:detections:{camera}`.
Leaves: alerts, on the Redis stream and channel `sparsecam:alerts`, each once, whatever dies in between.
All of it runs on the frames' own time, so the same video gives the same alerts. Sinks share cameras by leases.
Imported by `services`; imports `wire` only.
"""
