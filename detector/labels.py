"""Names of classes: from the config, else from the model's metadata, else the class's number."""

from __future__ import annotations

import structlog

from detector.errors import HeadError

log = structlog.get_logger()


def name_classes(
    configured: dict[int, str],
    from_model: dict[int, str] | None,
    class_count: int | None,
    model: str,
) -> dict[int, str]:
    """Names by class number; numbers that have none stand for themselves, with a warning.

    `class_count` is what the head reports, None where the head does not tell (boxes after NMS). Raises HeadError where
    more names are configured than the head has classes: they would be the names of another model.
    """
    if configured and class_count is not None and (max(configured) >= class_count or min(configured) < 0):
        raise HeadError(
            f"{model}: detector.labels names class {max(configured)}, but the model has classes 0 to {class_count - 1}"
        )
    names = configured or from_model
    if not names:
        log.warning("model has no class names, classes are called by number", model=model, mend="set detector.labels")
        return {}
    missing = [number for number in range(class_count or 0) if number not in names]
    if missing:
        log.warning("some classes have no name and are called by number", model=model, classes=missing[:20])
    return dict(names)
