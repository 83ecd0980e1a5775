"""Parameters of the compared networks, exactly, and multiply-adds."""

import pytest

from ctmasknet.paper.peer_counts import PEER_NETWORKS, network_counts

#: Parameters, and GMAC where a number is known from elsewhere.
KNOWN = {
    "COVIDNet-CT, look-alike": (1_793_152, 2.50),
    "COVNet, 3 classes": (23_514_179, None),
    "COVID-CT, DenseNet-169": (14_149_480, 3.36),
    "COVID-CT, ResNet-50": (25_557_032, 4.09),
    "ResNet-18": (11_689_512, 1.81),
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
