"""What predictions are worth: slice classes, scans and patients with intervals
(:func:`.report.evaluate_predictions`), lesions (:mod:`.lesions`).

The evaluators here are the door for training; ``predictions.csv`` is what all else starts from.
"""

from ctmasknet.evaluation.lesions.coco import LesionEvaluator
from ctmasknet.evaluation.lesions.dice import DiceEvaluator
from ctmasknet.evaluation.lesions.per_image_ap import PerImageAPEvaluator
from ctmasknet.evaluation.slices import ImageClassificationEvaluator

__all__ = [
    "DiceEvaluator",
    "ImageClassificationEvaluator",
    "LesionEvaluator",
    "PerImageAPEvaluator",
]
