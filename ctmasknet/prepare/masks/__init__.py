"""What masks hold: label values, colours, instances, or one class a file.

Its doors are :class:`~ctmasknet.prepare.masks.planes.MaskCode` and what reads by it.
"""
