"""What a training leaves for people to look at, beside results.csv.

`plots` draws results.png, the P/R/F1/PR curves and labels.png, `confusion` the table of confusion, `batches` sample
pictures with their boxes; `loggers` sends figures to TensorBoard, Weights & Biases and MLflow.
"""
