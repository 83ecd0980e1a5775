"""From a scan to its classes and lesions: the Python API, and what ``tools/predict.py`` is made
of."""

from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.results import FoundBox, PredictedScan, PredictedSlice

__all__ = ["CTPredictor", "FoundBox", "PredictedScan", "PredictedSlice"]
