"""Settings refuse what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from detector.settings import DetectorSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "tensorrt"},
        {"workers": 0},
        {"workers": "many"},
        {"cores_per_worker": 0},
        {"conf_thres": 1.5},
        {"iou_thres": -0.1},
        {"image_shape": [0, 416]},
        {"image_shape": [416]},
        {"warm_shapes": [[416, 100_000]]},
        {"modell": "m.onnx"},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DetectorSettings(**wrong)


def test_a_full_configuration_is_taken() -> None:
    settings = DetectorSettings(model="m.onnx", workers=2, labels={0: "a"}, image_shape=(416, 416))
    assert (settings.workers, settings.labels, settings.image_shape) == (2, {0: "a"}, (416, 416))


def test_every_field_says_what_it_is() -> None:
    assert all(field.description for field in DetectorSettings.model_fields.values())
