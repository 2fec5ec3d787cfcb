"""Snapshots and clips of incidents, from the packets that a camera delivered.

Enters: each camera's encoded packets (ring), the numbers of the frames sent to detectors, alerts.
Leaves: `<camera>/<day>/<incident>.jpg` and `.mp4` in `media.dir`, removed again by age and total size (retention).
Nothing is encoded but the JPEG: a clip is the camera's own packets in a new container.
Sources without packets (folders of images) have no snapshots and no clips.
Imported by `ingest` and `services`; nothing of it runs on a camera's thread but the ring.
"""
