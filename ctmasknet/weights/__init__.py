"""Checkpoints as files: the one reader, what they state, and the authors' renamed to Detectron2's.

The doors are :func:`ctmasknet.weights.reader.read_checkpoint` and
:func:`ctmasknet.weights.imported.import_file`.
"""
