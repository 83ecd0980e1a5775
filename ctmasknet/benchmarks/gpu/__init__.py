"""What one card does with ctmasknet, in minutes (``tools/gpu_check.py``).

The door is :func:`ctmasknet.benchmarks.gpu.check.gpu_check`.
"""
