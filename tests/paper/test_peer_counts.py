"""Parameters of the compared networks, exactly, and multiply-adds."""

import pytest

from ctmasknet.paper.peer_counts import (
    PEER_NETWORKS,
    TWO_BRANCH_COUNTS,
    network_counts,
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
    "JCS, VGG-16": (42_501_423, None),
    "JCS, joint": (117_717_811, None),
    "JCS, classifier": (43_061_828, None),
    "Inf-Net": (33_121_721, None),
    "Inf-Net, multi-class U-Net": (17_269_251, None),
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
