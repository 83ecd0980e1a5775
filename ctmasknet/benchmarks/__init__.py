"""Speed and memory as ratios within one run: ``tools/benchmark.py`` prints them."""
