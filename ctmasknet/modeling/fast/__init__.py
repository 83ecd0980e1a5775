"""The same models, quicker: by OpenVINO, in bfloat16, as exportable programs.

The door is :func:`ctmasknet.modeling.fast.inference.inference_model`.
"""
