"""Raw files to a prepared set.

The doors are :mod:`ctmasknet.prepare.lesions` (masks to COCO) and :mod:`ctmasknet.prepare.slices`
(lists or class folders to classified slices).
"""
