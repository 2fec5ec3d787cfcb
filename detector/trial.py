"""Try a model on an engine in a child process, where an engine that ends its process harms nobody.

The child compiles the model, runs one grey picture through it and writes a verdict. A child that writes none has died
or hung; what it last said on standard error is the reason. After that verdict it tries the same graph cut off at its
raw heads, and should it die of that, the first verdict stands. Another shape or batch of the same model is tried in
the form that won before, which halves the compiling. Verdicts are kept on disk, so a restart is quick.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from detector import heads, verdicts
from detector.agree import JUDGE, strays
from detector.engines import Array, Engine, engine_class, installed
from detector.errors import DetectorError, EngineRefused, HeadError
from detector.heads import Head
from detector.model import Model, parse_model
from detector.preprocess import GREY
from detector.raw_heads import RawHead, RawHeads, cut
from wire.messages import MALFORMED

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
# Timed runs end with the first of these. A second holds a hundred runs of a small model, some of them in quiet moments
# of a busy machine, and a large model is still run five times.
_TIMED_S = 1.0
_TIMED_RUNS = 100
_FEWEST_RUNS = 5
# Raw heads may take this much longer than the decoded output: reading them is cheaper, and measurements waver.
_RAW_COST = 1.03
# Raw heads spare an engine a tenth of its time: one this much slower than another cannot overtake it so.
_RAW_HOPE = 1.5
# Ends that a graph brings about, and would again, as does an assertion of the engine's own (DeepSparse then ends with
# status 1). Any other signal comes from outside (a stop, want of memory), any other status from what may pass.
_GRAPH_SIGNALS = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_TAIL_BYTES = 16_384  # of standard error: holds DeepSparse's longest report of an assertion


class Verdict(Struct, frozen=True):
    """What became of one trial."""

    accepted: bool
    engine: str
    batch: int
    height: int
    width: int
    reason: str = ""  # why it was refused
    unknown_head: bool = False  # it ran, but no head was recognised: no other engine would change that
    head: str = ""
    class_count: int | None = None
    outputs: list[list[int]] = []
    raw: RawHeads | None = None  # to be cut off at, and decoded here
    raw_because: str = ""  # why so, or why not
    ms: float = 0.0  # median inference in the child, of the form to be used, on `num_cores` cores
    best_ms: float = 0.0  # the quickest, which a busy machine moves least: engines are compared by it
    raw_skipped: bool = False  # raw heads were not tried, as the engine is too slow beside another
    lasting: bool = True  # whether the same trial would end the same way; a time-out or a kill might not
    inherited: bool = False  # the form was not chosen here, but where `TrialRequest.like` was tried


class TrialRequest(Struct, frozen=True):
    """What a child process is to try."""

    engine: str
    num_cores: int
    batch: int
    height: int
    width: int
    classes: int | None  # class names known beforehand
    parent: int  # process id
    beat_ms: float | None = None  # what another engine takes; one that is slower by far need not show its raw heads
    like: Verdict | None = None  # this engine's at another shape or batch: only the form that won there is tried


def try_model(
    model: Model,
    engine: str,
    *,
    num_cores: int,
    batch: int,
    height: int,
    width: int,
    classes: int | None,
    timeout_s: float,
    cache_dir: Path | None,
    beat_ms: float | None = None,
    like: Verdict | None = None,
    before: Callable[[], None] = lambda: None,
) -> Verdict:
    """Whether `engine` runs `model` at this input shape (pixels), from the cache or from a child process.

    `beat_ms`: the time of another engine; one that is slower by far is not tried on its raw heads, which takes seconds.
    `like`: this engine's verdict on the same model at another shape or batch; its form (raw heads or not) is kept to.
    `before` is called only when a child is to be started, which takes seconds to minutes.
    """
    request = TrialRequest(engine, num_cores, batch, height, width, classes, os.getpid(), beat_ms, like)
    key = verdicts.key(model.sha256, engine, installed().get(engine, ""), num_cores, batch, height, width, classes)
    known = _known(cache_dir, key, request)
    if known is not None:
        return known
    # Workers start together: one tries and the others read its verdict, so that all choose the same engine.
    with verdicts.alone(cache_dir):
        known = _known(cache_dir, key, request)
        if known is not None:
            return known
        before()
        log.info(
            "trying the model in a child process",
            model=model.name,
            engine=engine,
            batch=batch,
            height=height,
            width=width,
        )
        verdict = _run_child(model, request, timeout_s)
        if not verdict.accepted and like is not None and like.raw is not None:
            # Its raw heads failed at this shape alone: perhaps the decoded output does not.
            whole = _run_child(model, msgspec.structs.replace(request, like=None), timeout_s)
            verdict = msgspec.structs.replace(whole, lasting=whole.lasting and verdict.lasting)
        # What follows from a passing trouble passes too.
        if verdict.lasting and (like is None or like.lasting):
            verdicts.write(cache_dir, key, verdict)
    return verdict


def _known(cache_dir: Path | None, key: str, request: TrialRequest) -> Verdict | None:
    """The kept verdict, where it answers this question.

    One without raw heads does not for an engine alone, nor one in an inherited form where the form is to be chosen.
    """
    known = verdicts.read(cache_dir, key, Verdict)
    if known is None or (known.raw_skipped and request.beat_ms is None) or (known.inherited and request.like is None):
        return None
    return known


def _run_child(model: Model, request: TrialRequest, timeout_s: float) -> Verdict:
    try:
        return _run_child_in_folder(model, request, timeout_s)
    except OSError as error:
        return _refused(request, f"it could not be tried: {error}", lasting=False)


def _run_child_in_folder(model: Model, request: TrialRequest, timeout_s: float) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="sparsecam-trial-") as name:
        folder = Path(name)
        (folder / "model").write_bytes(model.with_shape(request.batch, request.height, request.width))
        (folder / "request.json").write_bytes(msgspec.json.encode(request))
        # The child's working folder is its own, so nothing that lies in ours can pass for one of our modules.
        house = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(part for part in (house, os.environ.get("PYTHONPATH", "")) if part)
        with (folder / "stderr").open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "detector.trial", name],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C or a stop of the whole group is ours to answer
            )
        try:
            code = child.wait(timeout_s)
            reason = f"the engine {_ending(code)}{_last_words(folder / 'stderr')}"
            lasting = -code in _GRAPH_SIGNALS or (code > 0 and "Assertion" in reason)
        except subprocess.TimeoutExpired:
            reason, lasting = f"not ready after {timeout_s:g} s (detector.trial_timeout_s)", False
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        try:
            verdict = msgspec.json.decode((folder / "verdict.json").read_bytes(), type=Verdict)
        except (OSError, *MALFORMED):
            return _refused(request, reason, lasting=lasting)
        if verdict.accepted and not verdict.raw_because:  # it came to its end on the raw heads
            return msgspec.structs.replace(verdict, raw_because=reason, lasting=lasting)
        return verdict


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended its process with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"died of {name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


def _last_words(path: Path) -> str:
    """The line of a child's standard error that says most about its end."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Assertion" in line or "rror:" in line]
    return f": {(telling or lines)[-1][:300]}" if lines else ""


def _refused(request: TrialRequest, reason: str, *, lasting: bool = True) -> Verdict:
    return Verdict(False, request.engine, request.batch, request.height, request.width, reason, lasting=lasting)


def judge(model: Model, data: bytes, request: TrialRequest, tell: Callable[[Verdict], None]) -> None:
    """Compile and run in this very process; refusals that come as errors become verdicts.

    `tell` takes the verdict on the model as it is and, where that is accepted, once more with that on its raw heads;
    only one verdict where the form is given by `request.like`.
    """
    if request.like is not None and request.like.raw is not None:
        return tell(_on_raw_heads(request.like, request.like.raw, data, model, request))
    try:
        engine = engine_class(request.engine).load(data, request.num_cores)
        tensor = model.tensor(request.batch, request.height, request.width, GREY)
        outputs: list[Array] = list(engine.infer(tensor))
        head = heads.recognise(outputs, request.height, request.width, request.classes)
        heads.check_class_count(head, outputs, _named(model, request))
        wrong = heads.fault(head, outputs)
        if not wrong and request.engine != JUDGE and request.like is None:  # elsewhere it was found out there
            wrong = strays(engine, model, head, request.batch)
        times_ms = timed(engine, tensor, request.num_cores)
    except HeadError as error:
        return tell(msgspec.structs.replace(_refused(request, str(error)), unknown_head=True))
    except DetectorError as error:
        return tell(_refused(request, str(error), lasting=error.lasting))
    verdict = Verdict(
        accepted=not wrong,
        engine=request.engine,
        batch=request.batch,
        height=request.height,
        width=request.width,
        reason=wrong,
        head=head.describe(),
        class_count=head.class_count,
        outputs=[list(output.shape) for output in outputs],
        ms=_median(times_ms),
        best_ms=times_ms[0],
    )
    if verdict.accepted and request.beat_ms is not None and verdict.best_ms > _RAW_HOPE * request.beat_ms:
        return tell(msgspec.structs.replace(verdict, raw_skipped=True, raw_because="another engine is faster by far"))
    if verdict.accepted and request.like is not None:
        return tell(msgspec.structs.replace(verdict, raw_because=_as_there(request.like), inherited=True))
    tell(verdict)
    if verdict.accepted:
        tell(_with_raw_heads(verdict, model, request, engine, head))
    return None


def _named(model: Model, request: TrialRequest) -> int | None:
    """How many classes have a name; None where the file, which is to name them all, names none."""
    return max([*model.labels, (request.classes or 0) - 1]) + 1 if model.labels else None


def _on_raw_heads(like: Verdict, raw: RawHeads, data: bytes, model: Model, request: TrialRequest) -> Verdict:
    """The verdict on a model whose raw heads were found, and compared with its decoded output, at another shape."""
    size = request.batch, request.height, request.width
    try:
        engine = engine_class(request.engine).load(cut(data, raw, *size), request.num_cores)
        tensor = model.tensor(*size, GREY)
        reader = RawHead(raw, *size)
        outputs = engine.infer(tensor)
        reader.check(outputs)
        if not all(np.isfinite(output).all() for output in outputs):
            raise EngineRefused(heads.NOT_FINITE)
        times_ms = timed(engine, tensor, request.num_cores)
    except DetectorError as error:
        return _refused(request, str(error), lasting=error.lasting)
    return msgspec.structs.replace(
        like,
        batch=request.batch,
        height=request.height,
        width=request.width,
        outputs=[list(output.shape) for output in outputs],
        ms=_median(times_ms),
        best_ms=times_ms[0],
        raw_because=_as_there(like),
        raw_skipped=False,
        lasting=True,
        inherited=True,
    )


def _as_there(like: Verdict) -> str:
    return f"as at {like.height}x{like.width}, batch {like.batch}: {like.raw_because}"


def _with_raw_heads(verdict: Verdict, model: Model, request: TrialRequest, engine: Engine, head: Head) -> Verdict:
    """The verdict, with the raw heads where this engine says the same through them, and no later."""
    # Here, in the child: a worker, which imports this module too, needs none of it.
    from detector.find_raw import NoRawHeads, find, noise, verify

    size = request.batch, request.height, request.width
    try:
        raw = find(model, head, *size)
        reader = RawHead(raw, *size)
        shorter = type(engine).load(cut(model.with_shape(*size), raw, *size), request.num_cores)
        picture = noise(model, *size)
        outputs = shorter.infer(picture)
        reader.check(outputs)
        verify(reader, outputs, engine.infer(picture)[head.outputs[0]], request.engine)
        times_ms = timed(shorter, model.tensor(*size, GREY), request.num_cores)
    except (NoRawHeads, DetectorError) as error:
        return msgspec.structs.replace(verdict, raw_because=str(error))
    told = f"raw heads take {_median(times_ms):.2f} ms, the decoded output {verdict.ms:.2f} ms"
    if times_ms[0] > _RAW_COST * verdict.best_ms:
        return msgspec.structs.replace(verdict, raw_because=told)
    return msgspec.structs.replace(verdict, raw=raw, raw_because=told, ms=_median(times_ms), best_ms=times_ms[0])


def _median(times_ms: list[float]) -> float:
    return times_ms[len(times_ms) // 2]


def timed(engine: Engine, tensor: Array, num_cores: int) -> list[float]:
    """Milliseconds of single inferences, the quickest first.

    On one core they are CPU time: a verdict is kept, and workers start beside whatever else runs at that moment.
    """
    clock = time.process_time if num_cores == 1 else time.perf_counter
    times_ms: list[float] = []
    end = time.perf_counter() + _TIMED_S
    while len(times_ms) < _FEWEST_RUNS or (len(times_ms) < _TIMED_RUNS and time.perf_counter() < end):
        start = clock()
        engine.infer(tensor)
        times_ms.append(round((clock() - start) * 1e3, 3))
    return sorted(times_ms)


def main(folder: Path) -> None:
    """The child: reads the request from its folder and leaves the verdict there."""
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=TrialRequest)
    _die_with(request.parent)
    # An abort here is an answer, not an accident to keep a core file of.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = (folder / "model").read_bytes()

    def tell(verdict: Verdict) -> None:
        partial = folder / "verdict.part"
        partial.write_bytes(msgspec.json.encode(verdict))
        partial.rename(folder / "verdict.json")

    judge(parse_model(data, "the model"), data, request, tell)


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process when the one that started it ends."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
