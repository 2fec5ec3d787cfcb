"""Data sets in YOLO's format, from data.yaml to augmented tensors; torch is wanted by `dataset` alone."""
