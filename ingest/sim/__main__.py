"""`python -m ingest.sim`: serve a simulated camera, print ground truth, or save a picture of a scene."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import ssl
import sys
import threading
from pathlib import Path

from ingest.sim.faults import KINDS, parse_fault, plan
from ingest.sim.launch import NICE
from ingest.sim.scene_url import parse

_PARENT_POLL_S = 1.0
_PASSWORD_VARIABLE = "SPARSECAM_SIM_PASSWORD"  # noqa: S105  # a variable's name; arguments show in process lists


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"ingest.sim: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ingest.sim", description=__doc__)
    commands = parser.add_subparsers(required=True)

    serve = commands.add_parser(
        "serve",
        help="serve a scene or a video file over RTSP until interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults, times in seconds from the start:\n"
        + "\n".join(
            f"  {kind + ('=VALUE' if meaning else ''):14} {what}{f' ({meaning})' if meaning else ''}"
            for kind, (meaning, _, _, _, what) in KINDS.items()
        ),
    )
    serve.add_argument("url", nargs="?", default="", help="sim://street?seed=1&size=1280x720&fps=25&objects=6...")
    serve.add_argument("--file", type=Path, help="an H.264 video file to loop, instead of a scene")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument("--port", type=int, default=8554, help="port; 0: any free one (default %(default)s)")
    serve.add_argument("--path", default="/camera", help="path of the stream (default %(default)s)")
    serve.add_argument("--user", help=f"ask for this user and the password in ${_PASSWORD_VARIABLE}")
    serve.add_argument("--basic", action="store_true", help="Basic instead of Digest authentication")
    serve.add_argument("--tls-cert", type=Path, help="PEM certificate chain: serve rtsps://")
    serve.add_argument("--tls-key", type=Path, help="its PEM private key")
    serve.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND[=VALUE][@START[+LENGTH]]",
        help="may be repeated; see below",
    )
    serve.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    truth = commands.add_parser("truth", help="print the ground truth of a scene as JSON lines")
    truth.add_argument("url", help="sim://street?seed=1")
    truth.add_argument("--frames", default="0:100", help="FIRST:END, END not included (default %(default)s)")
    truth.set_defaults(run=_truth)

    picture = commands.add_parser("picture", help="save one frame of a scene as an image file")
    picture.add_argument("url", help="sim://street?seed=1")
    picture.add_argument("output", type=Path, help="PNG or JPEG file")
    picture.add_argument("--frame", type=int, default=0, help="frame index (default %(default)s)")
    picture.add_argument("--boxes", action="store_true", help="draw the ground truth into it")
    picture.set_defaults(run=_picture)
    return parser


def _serve(options: argparse.Namespace) -> int:
    # Imported here: `truth` and errors in the arguments need none of it.
    import cv2
    import structlog

    from ingest.sim.file_source import FileSource
    from ingest.sim.rtsp_server import Credentials, RtspServer
    from ingest.sim.scene_source import SceneSource

    if bool(options.url) == bool(options.file):
        raise ValueError("give either a sim:// URL or --file VIDEO")
    faults = [parse_fault(text) for text in options.fault]
    credentials = None
    if options.user:
        password = os.environ.get(_PASSWORD_VARIABLE, "")
        if not password:
            raise ValueError(f"--user needs the password in the environment variable {_PASSWORD_VARIABLE}")
        credentials = Credentials(options.user, password, "basic" if options.basic else "digest")
    tls = None
    if options.tls_cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.tls_cert, options.tls_key)

    structlog.configure(  # standard output is for the URL alone
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if options.parent:
        os.nice(NICE)
        threading.Thread(target=_die_with, args=(options.parent,), daemon=True).start()
    cv2.setNumThreads(1)  # one camera must not take the machine
    source = FileSource(options.file) if options.file else SceneSource(parse(options.url))
    server = RtspServer(
        source, host=options.host, port=options.port, path=options.path, credentials=credentials, tls=tls
    )
    with server, plan(server.faults, faults):
        print(json.dumps({"rtsp_url": server.url}) if options.parent else server.url, flush=True)
        stop.wait()
    return 0


def _die_with(parent: int) -> None:
    """End this process at once when the one that launched it is gone, however it went.

    Linux' PR_SET_PDEATHSIG would also fire when only the launching *thread* ends, which may live shorter than its
    camera. The end of our standard input tells the same of the process; its id is asked for too, because a process that
    the parent forked may hold the other end open.
    """
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], _PARENT_POLL_S)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    os._exit(0)


def _truth(options: argparse.Namespace) -> int:
    from ingest.sim.scene import Street

    first, colon, end = options.frames.partition(":")
    if not (first.isdigit() and colon and end.isdigit() and int(first) <= int(end)):
        raise ValueError(f"--frames {options.frames!r} is not FIRST:END, for example 0:100")
    street = Street(parse(options.url))
    for index in range(int(first), int(end)):
        objects = [
            {"label": box.label, "id": box.object_id, "box": box.box, "visible": box.visible}
            for box in street.truth(index)
        ]
        print(json.dumps({"frame": index, "time_s": round(index / street.spec.fps, 6), "objects": objects}))
    return 0


def _picture(options: argparse.Namespace) -> int:
    import cv2

    from ingest.sim.scene import Street

    if options.frame < 0:
        raise ValueError(f"--frame {options.frame} is not a frame index: it must be at least 0")
    picture, boxes = Street(parse(options.url)).render(options.frame)
    if options.boxes:
        for box in boxes:
            cv2.rectangle(picture, box.box[:2], box.box[2:], (0, 0, 255), 2)
            text = f"{box.label} {box.visible:.0%}"
            cv2.putText(picture, text, (box.box[0], max(12, box.box[1] - 4)), 0, 0.5, (0, 0, 255), 1, cv2.LINE_AA)
    written = False
    with contextlib.suppress(cv2.error):  # raised for an unknown suffix
        written = cv2.imwrite(str(options.output), picture)
    if not written:
        raise ValueError(f"cannot write {options.output}: the folder must exist and the name end in .png or .jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
