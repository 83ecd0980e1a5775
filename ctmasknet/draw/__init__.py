"""Pictures of data and of what a model found; knows no model.

The door is :func:`ctmasknet.draw.lesions.side_by_side`.
"""
