"""Speed and memory as ratios within one run (``tools/benchmark.py``).

A benchmark is a function of ``repeats`` (times that each way is measured), ``seed`` (of whatever is
random in it: weights, slices, noise, phantoms) and options of its own. It returns what
:func:`ctmasknet.benchmarks.harness.comparison` makes. The door is
:data:`ctmasknet.benchmarks.catalogue.BENCHMARKS`, which lists them; :mod:`.table` makes the tables
of ``docs/speed.md`` of their files.
"""
