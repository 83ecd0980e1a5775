"""A step of two branches: what each half updates, when the branch is copied, what is refused."""

import math

import pytest
import torch
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from ctmasknet.engine.setup import built_model, training_cfg
from ctmasknet.engine.solver import AlternatingTrainer
from ctmasknet.engine.trainer import Trainer
from ctmasknet.errors import CTMaskNetError
from ctmasknet.key_checks import idle_keys
from ctmasknet.weights.reader import read_checkpoint
from tests.test_train_net import TINY

SSM, AFFINITY = "configs/peers/ssm.yaml", "configs/peers/affinity.yaml"
SHORT = [
    *("SOLVER.MAX_EPOCHS", 0, "SOLVER.CHECKPOINT_EPOCHS", 0, "TEST.EVAL_EPOCHS", 0),
    *("SOLVER.BASE_LR", 0.001, "INPUT.RANDOM_FLIP", "horizontal"),
]
OFTEN = ("SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 0, "DATASETS.VAL", "()")


@pytest.fixture
def cfg_of(repository, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)

    def call(*overrides, config=SSM):
        out = () if "OUTPUT_DIR" in overrides else ("OUTPUT_DIR", tmp_path / "run")
        return training_cfg(config, [*map(str, (*TINY, *SHORT, *out, *overrides))])

    return call


def _changed(model, before):
    return {
        ".".join(name.split(".")[:2])
        for name, value in model.named_parameters()
        if not torch.equal(before[name], value)
    }


def _copy(model):
    return {name: value.clone() for name, value in model.named_parameters()}


def test_each_half_of_a_step_updates_its_parts(cfg_of):
    trainer = Trainer(cfg_of())
    step, model = trainer._trainer, trainer._trainer.model
    assert isinstance(step, AlternatingTrainer)
    lesions = next(iter(step._lesion_loader(7)))
    slices = next(iter(step.data_loader))
    assert "instances" in lesions[0] and "label" in slices[0]
    before = _copy(model)
    with EventStorage():
        losses = step._stepped(lesions)
    assert set(losses) == {
        *("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask")
    }
    detector = {f"roi_heads.{part}" for part in ("box_head", "box_predictor", "mask_head")}
    backbone = {f"backbone.{part}" for part in ("bottom_up", "fpn_lateral4", "fpn_output4")}
    assert _changed(model, before) == {*detector, *backbone, "proposal_generator.rpn_head"}
    before = _copy(model)
    assert set(step._stepped(slices)) == {"loss_image"}
    head = {f"image_head.{name}" for name in ("fc1", "fc2", "logits")}
    assert _changed(model, before) == {*backbone, *head}
    assert not model.roi_heads.training and model.backbone.training


@pytest.mark.parametrize(
    ("previous", "copied"), [(False, [1, 0, 1, 0, 0]), (True, [1, 0, 1, 0, 1])]
)
def test_the_branch_is_copied_where_lesion_losses_fall(previous, copied, monkeypatch):
    """Losses 3, 4, 2, 6, 5: below all before at steps 1 and 3; below the last at step 5 too."""
    copies = []
    model = torch.nn.Linear(1, 1)
    model.roi_heads = torch.nn.Module()
    model.roi_heads.copy_branch = lambda: copies.append(1)
    losses = iter([3.0, 4.0, 2.0, 6.0, 5.0])
    seen = []

    def stepped(self, batch):
        return {"loss": torch.tensor(next(losses) if batch == "lesions" else 0.5)}

    class Loader(list):
        def __init__(self, word):
            super().__init__([word] * 5)
            self.dataset = type("Set", (), {"seed": 7})()
            self.batch_sampler = type("Batches", (), {"start": 0})()

    def lesion_loader(seed):
        seen.append(seed)
        return Loader("lesions")

    monkeypatch.setattr(AlternatingTrainer, "_stepped", stepped)
    monkeypatch.setattr(AlternatingTrainer, "_write_metrics", lambda *_: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AlternatingTrainer(
        model, Loader("slices"), optimizer, lesion_loader, previous=previous
    )
    trainer.iter, found = 0, []
    for _ in range(5):
        copies.clear()
        trainer.run_step()
        found.append(len(copies))
    assert found == copied and seen == [7]
    assert trainer.state_dict()["to_beat"] == (5.0 if previous else 2.0)
    assert math.isinf(AlternatingTrainer(model, [], optimizer, lesion_loader).to_beat)


def test_a_training_may_start_from_a_detector(cfg_of, tmp_path):
    weights = built_model(cfg_of()).state_dict()
    own = ("image_head.", "roi_heads.ranked.")
    weights = {name: value for name, value in weights.items() if not name.startswith(own)}
    path = tmp_path / "detector.pth"
    torch.save({"model": weights}, path)
    trainer = Trainer(cfg_of("MODEL.WEIGHTS", path))
    trainer.resume_or_load(resume=False)
    found = trainer.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    torch.save({"model": {n: w for n, w in weights.items() if "box_head" not in n}}, path)
    with pytest.raises(CTMaskNetError, match=r"not in it, such as roi_heads\.box_head\.fc1"):
        trainer.resume_or_load(resume=False)


@pytest.mark.parametrize(("config", "half"), [(SSM, 2), (AFFINITY, 1)])
def test_a_resumed_training_ends_as_the_unbroken_one(cfg_of, tmp_path, config, half):
    few = ("MODEL.RANKED_BOXES.NUM", 2, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 32)
    few += ("MODEL.IMAGE_HEAD.SIEVE_STAGES", 1)

    def train(folder, iterations, resume=False):
        seed_all_rng(iterations if resume else 7)
        out = ("OUTPUT_DIR", tmp_path / folder, "SOLVER.MAX_ITER", iterations)
        trainer = Trainer(cfg_of(*out, *OFTEN, *few, config=config))
        trainer.resume_or_load(resume=resume)
        begun = trainer.model.roi_heads.ranked.box_head.fc1.weight.clone()
        trainer.train()
        return begun

    begun = train("whole", 2 * half)
    train("parts", half)
    train("parts", 2 * half, resume=True)
    whole, parts = (read_checkpoint(tmp_path / f / "model_final.pth") for f in ("whole", "parts"))
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    of_steps = [one["trainer"]["_trainer"] for one in (whole, parts)]
    assert of_steps[0]["to_beat"] == of_steps[1]["to_beat"] < math.inf
    states = [one["optimizer"]["state"] for one in of_steps]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
    assert not torch.equal(whole["model"]["roi_heads.ranked.box_head.fc1.weight"], begun)
    sets = [(entry["dataset"], entry["task"]) for entry in whole["trained_on"]]
    assert sets == [
        ("covidx_ct_train", "classification"),
        ("cncb_lesions_merge_train", "segmentation"),
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["DATASETS.LESIONS", "()"], "DATASETS.LESIONS is empty"),
        (["MODEL.TRAINABLE", "heads"], "MODEL.TRAINABLE is 'heads'"),
        (["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED is True"),
        (["INPUT.LUNGS_ONLY", "True"], "INPUT.LUNGS_ONLY is True"),
        (["DATASETS.LESIONS", "('covidx_ct_train',)"], "covidx_ct_train: has no thing_classes"),
        (["DATASETS.LESIONS", "('no_such_set',)"], "no_such_set"),
        (["MODEL.TWO_BRANCH.COPY_WHEN", "never"], "MODEL.TWO_BRANCH.COPY_WHEN is 'never'"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(cfg_of, overrides, words):
    with pytest.raises(CTMaskNetError, match=words.replace("(", r"\(")):
        cfg_of(*overrides)


def test_lesion_sets_are_of_two_branches_alone(repository, prepared, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    given = ["DATASETS.LESIONS", "('cncb_lesions_merge_train',)", "MODEL.WEIGHTS", ""]
    with pytest.raises(CTMaskNetError, match="there are no two branches"):
        training_cfg(str(repository / "configs/cls_light.yaml"), given)


def test_slices_without_lesions_are_drawn_where_that_is_asked_for(cfg_of):
    trainer = Trainer(cfg_of("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"))
    assert len(trainer._trainer._lesion_loader(7).dataset) == 20  # 16 of them have lesions
    assert not [line for line in idle_keys(trainer.cfg) if "FILTER_EMPTY" in line]


def test_mask_features_that_no_layer_is_copied_to_are_told(cfg_of, caplog):
    for width, told in ((16, True), (256, False)):
        caplog.clear()
        cfg_of("MODEL.ROI_MASK_HEAD.CONV_DIM", width, config=AFFINITY)
        assert ("no layer of the mask head is copied to theirs" in caplog.text) == told
