"""From a frame to boxes: engines, head decoding, NMS, trials of unknown models, core claims, the worker loop.

Enters: letterboxed frames (`wire.messages.FrameHeader` and its pixels) and a model: ONNX, or a YOLOv5 checkpoint.
Leaves: `wire.messages.Detection`s in pixels of the source picture.
Imports `wire` only (one engine: `trainer`), knows nothing of cameras or rules; imported by `services`.
"""
