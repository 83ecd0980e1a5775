"""Networks of the systems that the paper is compared with; docs/peers.md names them."""

from ctmasknet.modeling.peers.covidnet_ct import COVIDNetCT
from ctmasknet.modeling.peers.lesion_maps import DetectedLesionClassifier, SemanticLesionClassifier
from ctmasknet.modeling.peers.patches import PatchNet
from ctmasknet.modeling.peers.scan_classifier import ScanClassifier
from ctmasknet.modeling.peers.semantic_lesions import SemanticLesionNet
from ctmasknet.modeling.peers.slice_classifier import SliceClassifier

__all__ = [
    "COVIDNetCT",
    "DetectedLesionClassifier",
    "PatchNet",
    "ScanClassifier",
    "SemanticLesionClassifier",
    "SemanticLesionNet",
    "SliceClassifier",
]
