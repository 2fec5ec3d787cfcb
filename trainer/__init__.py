"""The YOLOv5 family in PyTorch, and its checkpoints.

Enters: checkpoints, public ones and our own.
Leaves: networks with their weights, class names and picture size.
Imports `wire` only; imported by `services`, and of the live path by `detector.engines.torch` alone.
Needs torch (`pip install 'sparsecam[torch]'`).
"""
