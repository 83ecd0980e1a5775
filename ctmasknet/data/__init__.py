"""Prepared sets as training sees them: registered, mapped, split by patient.

The door is :mod:`ctmasknet.data.registry`.
"""
