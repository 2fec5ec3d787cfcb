"""From any exported YOLO ONNX to the form that one engine runs fastest, with the same answers.

Enters: a `detector.model.Model`. Leaves: ONNX bytes and a report of every step taken or skipped, with its reason.
`prepare.prepare_model` is the way in; each rewrite is a module of its own and is compared with the original by itself.
"""
