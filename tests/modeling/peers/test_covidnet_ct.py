"""The imported network as a model, its crop, and the look-alike."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.setup import training_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.peers.covidnet_ct import COVIDNetCT, body_box
from ctmasknet.modeling.peers.graph_network import OPERATIONS, Graph, GraphNetwork, GraphNode
from ctmasknet.paper.peer_counts import PEER_NETWORKS, network_counts

_CONV = {"stride": [2, 2], "dilation": [1, 1], "padding": "SAME"}


def _graph(layout: str = "NHWC", op: str = "Conv2D", **attrs) -> Graph:
    shape, axes = ((5, 5, 3), [1, 2]) if layout == "NHWC" else ((3, 5, 5), [2, 3])
    nodes = (
        GraphNode("Input", "image"),
        GraphNode("Weight", "kernel", (), {"shape": [3, 3, 3, 3]}),
        GraphNode(op, "conv", (0, 1), {"layout": layout, **_CONV, **attrs}),
        GraphNode("Mean", "logits", (2,), {"axes": axes, "keep": False}),
    )
    return Graph(nodes, shape)


def test_layouts_compute_the_same():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 5, 5, 3, generator=generator)
    kernel = torch.rand(3, 3, 3, 3, generator=generator)
    found = []
    for layout in ("NHWC", "NCHW"):
        network = GraphNetwork(_graph(layout))
        network.load_state_dict({"kernel": kernel})
        found.append(network(images if layout == "NHWC" else images.permute(0, 3, 1, 2)))
    torch.testing.assert_close(*found)


def test_same_pads_last_where_it_is_odd():
    """A side of 4, window 3, stride 2: one px of border, behind."""
    pool = {"layout": "NHWC", "window": [3, 3], "stride": [2, 2], "padding": "SAME"}
    ramp = torch.arange(16.0).view(1, 4, 4, 1)
    assert OPERATIONS["MaxPool"].run(ramp, **pool).flatten().tolist() == [10, 11, 14, 15]
    means = OPERATIONS["AvgPool"].run(ramp, **pool).flatten().tolist()
    assert means == pytest.approx([5, 6.5, 11, 12.5])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (_graph(stride=[0, 1]), "stride of Conv2D is"),
        (_graph(op="Exec"), "operation 'Exec' is not supported"),
        (_graph(padding="NONE"), "padding of Conv2D is NONE"),
    ],
)
def test_a_text_is_checked(graph, message):
    with pytest.raises(CTMaskNetError, match=message):
        Graph.from_text(graph.to_text())


def test_work_is_bounded():
    many = _graph()
    nodes = (
        *many.nodes[:3],
        GraphNode("Pad", "pad", (2,), {"paddings": [[0, 64]] * 4, "value": 0}),
    )
    for _ in range(8):
        pad = GraphNode("Pad", "pad", (len(nodes) - 1,), nodes[-1].attrs)
        nodes = (*nodes, pad)
    with pytest.raises(CTMaskNetError, match="node pad: its tensors are too large"):
        _ = Graph(nodes, many.input_shape).num_outputs


def test_the_body_is_found():
    slice_ = np.full((120, 160), 10, np.uint8)
    slice_[20:100, 30:130] = 180
    slice_[110:114, 0:150] = 180  # a table, thinner than the erosion
    assert body_box(slice_) == (33, 23, 127, 97)
    assert body_box(np.zeros((20, 30), np.uint8)) == (0, 0, 30, 20)


def test_a_slice_that_is_cut_is_not_cut_again():
    model = COVIDNetCT(network=GraphNetwork(_graph()), num_classes=3).eval()
    torch.nn.init.constant_(model.network.kernel, 0.1)
    image = torch.full((3, 60, 60), 10, dtype=torch.uint8)
    image[:, 15:45, 15:45] = 200
    found = model([{"image": image}, {"image": image, "crop_box": [0, 0, 60, 60]}])
    assert set(found[0]) == {"logits", "scores", "pred_class"}
    pixels = [
        model._pixels(item)[0, 0, 0] for item in ({"image": image}, {"image": image, "crop_box": 1})
    ]
    assert pixels == [pytest.approx(200 / 255), pytest.approx(10 / 255)]


def test_a_model_without_its_graph_says_where_to_get_it(repository):
    cfg = read_cfg(repository / "configs/peers/covidnet_ct.yaml", ["MODEL.DEVICE", "cpu"])
    with pytest.raises(CTMaskNetError, match=r"GRAPH: is empty; set MODEL\.WEIGHTS"):
        build_model(cfg)


@pytest.mark.usefixtures("clean_catalogs")
def test_a_training_takes_the_graph_of_the_file_it_starts_from(
    repository, prepared, tmp_path, monkeypatch
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    text = _graph().to_text()
    spec = {"task": "classification", "configuration": {"MODEL.COVIDNET_CT.GRAPH": text}}
    weights = {"network.kernel": torch.zeros(3, 3, 3, 3)}
    torch.save({"model": weights, "ctmasknet": spec}, tmp_path / "start.pth")
    config = repository / "configs/peers/covidnet_ct.yaml"
    words = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS"]
    cfg = training_cfg(config, [*words, str(tmp_path / "start.pth")])
    assert text == cfg.MODEL.COVIDNET_CT.GRAPH
    # A training that goes on has it from its own checkpoint
    (tmp_path / "out").mkdir()
    (tmp_path / "start.pth").rename(tmp_path / "out/model_0000001.pth")
    (tmp_path / "out/last_checkpoint").write_text("model_0000001.pth")
    cfg = training_cfg(config, [*words, str(tmp_path / "start.pth")], resume=True)
    assert text == cfg.MODEL.COVIDNET_CT.GRAPH


def test_the_look_alike_has_the_size_that_is_told_of_it():
    network = next(one for one in PEER_NETWORKS if "look-alike" in one.name)
    parameters, multiply_adds = network_counts(network)
    assert parameters == 1_793_152
    assert multiply_adds == pytest.approx(2.50, abs=0.005)


def test_the_look_alike_learns(repository):
    cfg = read_cfg(
        repository / "configs/peers/covidnet_ct_lookalike.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.SLICE_NETWORK.SIZE", 64],
    )
    model = build_model(cfg)
    items = [
        {"image": torch.full((3, 64, 64), 60 * label, dtype=torch.uint8), "label": label}
        for label in (0, 1, 2)
    ]
    loss = model(items)["loss_image"]
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
