"""What the exporter does to an ONNX graph once PyTorch has written it."""
