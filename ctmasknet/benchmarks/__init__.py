"""Speed and memory as ratios within one run (``tools/benchmark.py``).

A benchmark is a function of ``repeats``, ``seed`` and options of its own that returns what
:func:`ctmasknet.benchmarks.harness.comparison` makes; :mod:`.catalogue` lists them, :mod:`.table`
makes the README's table of their files.
"""
