"""What predictions are worth: slice classes, lesions by COCO and by the authors' per-image AP,
scans and patients with intervals (:func:`.report.evaluate_predictions`), lesion burden.

The evaluators here are the door for training; ``predictions.csv`` is what all else starts from.
"""

from ctmasknet.evaluation.lesions import LesionEvaluator, lesion_free_metrics
from ctmasknet.evaluation.metrics import (
    bce_loss,
    classification_metrics,
    confusion_matrix,
    confusion_table,
)
from ctmasknet.evaluation.per_image_ap import IOU_THRESHOLDS, PerImageAPEvaluator, per_image_ap
from ctmasknet.evaluation.pooling import PooledPrediction, ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import (
    SlicePrediction,
    read_predictions_csv,
    write_predictions_csv,
)
from ctmasknet.evaluation.slices import ImageClassificationEvaluator

__all__ = [
    "IOU_THRESHOLDS",
    "ImageClassificationEvaluator",
    "LesionEvaluator",
    "PerImageAPEvaluator",
    "PooledPrediction",
    "ScorePooling",
    "SlicePrediction",
    "bce_loss",
    "classification_metrics",
    "confusion_matrix",
    "confusion_table",
    "lesion_free_metrics",
    "per_image_ap",
    "pool_slices",
    "read_predictions_csv",
    "write_predictions_csv",
]
