"""Ensembles and flips: in the Python API, on command lines, in what is written."""
