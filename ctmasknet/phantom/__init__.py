"""Synthetic patients in the layouts of the real data.

The door is :mod:`ctmasknet.phantom.write`.
"""
