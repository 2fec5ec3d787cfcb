"""Another model beside the one that detects: read, checked, tried and compiled in a thread until it is ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog

from detector.detector import Detector
from detector.errors import DetectorError, ModelError
from detector.model import Model, read_model
from detector.refit import fitted_shape
from detector.settings import DetectorSettings
from wire.deployment import ModelRef
from wire.messages import FrameHeader

log = structlog.get_logger()


def load_deployed(
    settings: DetectorSettings, model: ModelRef | None, num_cores: int, sources: Iterable[FrameHeader] = ()
) -> Detector:
    """The detector of a deployed model, or of the settings' own where `model` is None.

    Compiled for frames of the same sources as `sources`, so that the first of each need not wait for it. A deployed
    model's own class names, and the size of a graph that has one, win over `settings.labels` and
    `settings.image_shape`, which were written for another. Raises ModelError for a file that is not there or is not the
    one that was deployed, and what `Detector.load` raises.
    """
    if model is None:
        detector = Detector.load(settings, num_cores)
    else:
        found = read_model(Path(model.path))
        if found.sha256 != model.sha256:
            raise ModelError(
                f"{model.path} is not the file that was deployed: SHA-256 {found.sha256[:16]}…, expected "
                f"{model.sha256[:16]}…; put the same file there, or deploy this one"
            )
        detector = Detector.of(found, _for_deployed(found, model.path, settings), num_cores, deployed=True)
    for shape in dict.fromkeys(fitted_shape(header, detector.spec) for header in sources):
        if not detector.is_compiled(*shape):
            detector.prepare(*shape)
    return detector


def _for_deployed(model: Model, path: str, settings: DetectorSettings) -> DetectorSettings:
    """The settings without what was written for another model."""
    changes: dict[str, Any] = {"model": path}
    if model.labels:
        changes["labels"] = None
    own, wanted = (model.height, model.width), settings.image_shape
    # A graph that takes any size goes on with the wanted one: that says how much a frame may cost.
    if None not in own and wanted not in (None, own):
        changes["image_shape"] = None
        log.warning(
            "detector.image_shape is not followed: the deployed model has a size of its own",
            model=model.name,
            own=f"{model.height}x{model.width}",
            image_shape=wanted,
        )
    return settings.model_copy(update=changes)


class Beside:
    """Loads one detector at a time in a thread of its own. All methods are for one thread."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._done: Detector | DetectorError | None = None
        self._thread: threading.Thread | None = None

    @property
    def loading(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, key: str, load: Callable[[], Detector]) -> None:
        """Begin; `key` tells later what was loaded. A thread at work cannot be interrupted: ask `loading` first."""
        assert not self.loading
        self._key, self._done = key, None
        self._thread = threading.Thread(target=self._run, args=(load,), name="loading a model", daemon=True)
        self._thread.start()

    def take(self) -> tuple[str, Detector | DetectorError] | None:
        """What was loaded, or why it could not be, once; None while there is nothing new."""
        if self._thread is None or self.loading or self._key is None or self._done is None:
            return None
        taken = self._key, self._done
        self._key = self._done = self._thread = None
        return taken

    def _run(self, load: Callable[[], Detector]) -> None:
        try:
            self._done = load()
        except DetectorError as error:
            self._done = error
        # Whatever a library makes of a strange file must not pass for loading for ever.
        except Exception as error:
            log.exception("unexpected error while loading a model")
            self._done = ModelError(f"{type(error).__name__}: {error}")
