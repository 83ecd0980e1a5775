"""The same models, quicker: fused layers, the inference copy, the exportable program.

The door is :func:`ctmasknet.modeling.fast.inference.inference_model`.
"""
