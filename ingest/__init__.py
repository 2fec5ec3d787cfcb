"""From a source URL to timed, letterboxed frames.

Enters: a camera's settings (a file, a folder, RTSP, HTTP, a webcam, `sim://`) and the picture detectors ask for.
Leaves: `wire` frame headers with pixels, through a camera's port; every frame counted in that camera's ledger.
Inside: reader (adaptive decoding) -> clock -> fps limit -> motion gate -> letterbox, a thread a camera, a watchdog.
Imported by `services` alone; imports `wire` alone. No inference and no Redis in here.
"""
