"""Tests of ctmasknet.data.sets."""
