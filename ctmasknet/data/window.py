"""Former name of the HU window's place, :mod:`ctmasknet.ct.scan`, kept for scripts."""

from ctmasknet.ct.scan import Window

__all__ = ["Window"]
