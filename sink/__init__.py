"""From boxes to alerts: order, rules, delivery.

Enters: the detections of every camera, from the Redis streams `sparsecam:detections:{camera}`.
Leaves: alerts, on the Redis stream and channel `sparsecam:alerts`, each once, whatever dies in between.
Rules run on the frames' own time, so the same video gives the same alerts.
Imported by `services`; imports `wire` only.
"""
