"""Training: configuration, trainer, checkpoints, records.

The doors are :func:`ctmasknet.engine.setup.setup_cfg` and
:class:`ctmasknet.engine.trainer.Trainer`.
"""
