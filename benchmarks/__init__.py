"""Measurements against others' work: speed in turns with peers, accuracy by the COCO definition.

Enters: a video, a model, a labelled folder. Leaves: tables and JSON. Nothing of the product imports this folder; peers
that need packages of their own get an environment of their own outside the repository.
"""
