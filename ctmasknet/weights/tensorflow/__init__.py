"""TensorFlow-1 checkpoints (``.meta``, ``.index``, ``.data-...``) read as data, without TensorFlow.

The door is :func:`ctmasknet.weights.tensorflow.covidnet_ct.import_covidnet_ct`.
"""
