"""Training: configuration, trainer, checkpoints, records.

The doors are :func:`ctmasknet.engine.setup.training_cfg` with
:class:`ctmasknet.engine.trainer.Trainer`, and for whatever uses a trained model
:func:`ctmasknet.engine.setup.inference_cfg`.
"""
