"""What predictions are worth: slice classes, lesions by COCO and by the authors' per-image AP,
scans and patients with intervals (:func:`.report.evaluate_predictions`), lesion burden.

The evaluators here are the door for training; ``predictions.csv`` is what all else starts from.
"""

from ctmasknet.evaluation.lesions import LesionEvaluator
from ctmasknet.evaluation.per_image_ap import PerImageAPEvaluator
from ctmasknet.evaluation.slices import ImageClassificationEvaluator

__all__ = ["ImageClassificationEvaluator", "LesionEvaluator", "PerImageAPEvaluator"]
