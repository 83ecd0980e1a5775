"""The authors' weight files: read as data, renamed to Detectron2's parts.

The door is :func:`ctmasknet.weights.imported.import_file`.
"""
