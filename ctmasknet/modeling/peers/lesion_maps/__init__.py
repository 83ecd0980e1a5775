"""Classes of slices and scans by the lesions that a model finds: by areas and places (Aleem et al.
2020, ARK20, and the U-Net ways), or by the lesion maps of a scan (Zhang et al. 2020)."""

from ctmasknet.modeling.peers.lesion_maps.classifiers import (
    DetectedLesionClassifier,
    SemanticLesionClassifier,
)

__all__ = ["DetectedLesionClassifier", "SemanticLesionClassifier"]
