"""Former name of :mod:`ctmasknet.ct.read`, kept for scripts that import it."""

from ctmasknet.ct.read import read_scans

__all__ = ["read_scans"]
