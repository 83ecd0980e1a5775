"""Parameters of the compared networks, exactly, and multiply-adds."""

import pytest

from ctmasknet.paper.peer_counts import (
    ON_LESIONS,
    PEER_NETWORKS,
    TWO_BRANCH_COUNTS,
    network_counts,
    parameters_on_lesions,
    two_branch_parameters,
)

#: Parameters, and GMAC where a number is known from elsewhere.
KNOWN = {
    "COVIDNet-CT, look-alike": (1_793_152, 2.50),
    "COVNet, 3 classes": (23_514_179, None),
    "COVID-CT, DenseNet-169": (14_149_480, 3.36),
    "COVID-CT, ResNet-50": (25_557_032, 4.09),
    "ResNet-18": (11_689_512, 1.81),
    "EfficientNet-Lite0": (4_652_008, 0.385),
    # ResNet-18 without its last layer, and 3 x (512 + 4) weights and 3 biases
    "Xu et al., a patch with its place": (11_176_512 + 1551, 1.81 * (64 / 224) ** 2),
    "JCS, VGG-16": (42_501_423, None),
    "JCS, joint": (117_717_811, None),
    "JCS, classifier": (43_061_828, None),
    "Inf-Net": (33_121_721, None),
    "Inf-Net, multi-class U-Net": (17_269_251, None),
    "U-Net, ResNet-34": (24_436_514, None),
    "U-Net++, ResNet-34": (26_078_754, None),
    "DeepLabv3+, ResNet-50": (26_677_842, None),
    # torchvision's 33,371,472, with 2 channels for 3 and 3 classes for 400
    "Zhang et al., second stage": (33_371_472 - 64 * 3 * 7 * 7 - 397 * 513, None),
}


@pytest.mark.parametrize("network", PEER_NETWORKS, ids=lambda network: network.name)
def test_counts(network):
    parameters, multiply_adds = network_counts(network)
    known, gmac = KNOWN[network.name]
    assert parameters == known
    assert gmac is None or multiply_adds == pytest.approx(gmac, abs=0.01)


def test_the_authors_later_models_have_as_many_as_theirs():
    """But for the rows of their background class: 4 x 129 of a box predictor, 129 or 257 of a mask
    predictor."""
    found = {model.name: two_branch_parameters(model) for model in TWO_BRANCH_COUNTS}
    assert found == {
        "single shot": (8_266_598, 8_267_759),
        "affinity": (13_659_686, 13_660_975),
        "LSTM + attention": (35_552_127, 35_553_416),
    }


def test_systems_on_lesions_are_their_lesion_model_and_a_head():
    """17 numbers a slice of two lesion classes; Mask R-CNN is that of seg.yaml."""
    rcnn, unet = 31_727_971, KNOWN["U-Net, ResNet-34"][0]
    xu, zhang = KNOWN["Xu et al., a patch with its place"], KNOWN["Zhang et al., second stage"]
    expected = {
        "xu_resnet18": (rcnn, xu[0]),
        "ark20_r50": (rcnn, 3),
        "ark20_r101": (50_720_099, 3),
        "unet_logistic": (unet, 18 * 3),
        "unet_mlp": (unet, 18 * 32 + 33 * 3),
        "zhang": (KNOWN["DeepLabv3+, ResNet-50"][0], zhang[0]),
    }
    found = {name: parameters_on_lesions(name) for name in ON_LESIONS}
    assert found == {name: (lesions + head, head) for name, (lesions, head) in expected.items()}
