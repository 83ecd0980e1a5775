import torch

from ctmasknet.modeling.image_heads.s import RankedBoxImageHead, StandardizedRankedBoxImageHead


def parameters(**kwargs):
    return sum(parameter.numel() for parameter in RankedBoxImageHead(**kwargs).parameters())


def test_published_sizes():
    assert parameters(num_boxes=256, fc_dim=1024, num_classes=3) == 2_364_419
    assert parameters(num_boxes=128, fc_dim=512, num_classes=3) == 592_387


def test_known_weights_give_known_logits():
    head = RankedBoxImageHead(num_boxes=2, fc_dim=1, num_classes=2)
    with torch.no_grad():
        head.fc1.weight.copy_(torch.arange(10.0).reshape(1, 10))
        head.fc2.weight.fill_(2.0)
        head.logits.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        head.logits.bias.copy_(torch.tensor([0.5, 0.0]))
    rows = torch.zeros(1, 2, 5)
    rows[0, 1, 0] = 0.5  # the second row's score is the sixth number of the flat list
    assert head(rows).tolist() == [[5.5, -5.0]]


def test_standardized_rows():
    torch.manual_seed(0)
    head = StandardizedRankedBoxImageHead(num_boxes=4, fc_dim=8, num_classes=3).train()
    rows = torch.randn(64, 4, 5) * 3 + 2
    first = head(rows)
    # Units and zero point of a column do not matter
    torch.testing.assert_close(head(rows * 7 - 1), first, atol=1e-4, rtol=1e-4)
    head.eval()
    assert head(rows).isfinite().all()
