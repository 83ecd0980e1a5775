"""The model table: which configs are listed, and the sizes the paper's models have."""

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.paper.variants import HEADINGS, authors_counts, model_rows, structure_of, variants
from ctmasknet.paper.zoo import model_tables


def pick(known, *names):
    return [next(item for item in known if item.name == name) for name in names]


def test_every_config_is_listed_once_under_its_heading(known, repository):
    files = {
        path.relative_to(repository).as_posix()
        for path in (repository / "configs").rglob("*.yaml")
        if path.parent.name not in ("parts", "peers", "experiments")
    }
    assert {item.config for item in known} == files and len(known) == len(files)
    order = [HEADINGS.index(item.heading) for item in known]
    assert order == sorted(order)
    assert [item.heading for item in pick(known, "seg_light", "demo/control")] == list(HEADINGS[2:])


def test_a_row_has_the_numbers_of_the_model_and_of_the_authors(known):
    rows = model_rows(pick(known, "seg", "cls_heads_bn", "cls_r18_t1_merge", "seg_light"))
    seg, modes, small, light = rows
    assert (seg["parameters"], seg["trainable"]) == (31_727_971, 31_727_971)
    assert (seg["authors_parameters"], seg["authors_state_dict"]) == (31_728_744, 31_781_917)
    assert (modes["trainable"], modes["authors_parameters"]) == (2_417_539, 31_469_672)
    assert modes["parameters"] - modes["mask_head"] == 31_469_672 - 516
    assert (small["backbone"], small["truncation"], small["mask_type"]) == ("ResNet-18", 1, "merge")
    assert (small["num_boxes"], small["image_fc_dim"]) == (128, 512)
    assert small["authors_parameters"] == 6_283_235 and small["trainable"] == 592_387
    assert light["authors_parameters"] is None and light["training_mode"] is None
    text = "".join(table.markdown() for table in model_tables(rows))
    line = next(line for line in text.splitlines() if "configs/seg.yaml" in line)
    assert "| 31,727,971 |" in line and "| all |" in line and "| - |" in line


def test_the_papers_whole_is_the_authors_state_dict_with_masks(known):
    (cls,) = pick(known, "cls")
    assert authors_counts(cls.structure, with_masks=True)[1] == 34_146_336


def test_a_structure_tells_modes_and_masks_apart(known):
    cls, full, merge = pick(known, "cls", "cls_full", "cls_r50_merge")
    assert len({item.structure for item in (cls, full, merge)}) == 3
    cfg = cls.cfg.clone()
    cfg.merge_from_list(["MODEL.TRAINABLE", "full", "SOLVER.MAX_ITER", 3])
    assert structure_of(cfg) == full.structure


def test_other_backbones_and_heads_are_not_the_authors(known):
    rows = model_rows(pick(known, "seg_lite0", "cls_attention"))
    assert [row["authors_parameters"] for row in rows] == [None, None]
    assert [row["backbone"] for row in rows] == ["tf_efficientnet_lite0", "ResNet-50"]
    (cls,) = pick(known, "cls")
    for key, value in (
        ("MODEL.IMAGE_HEAD.NAME", "StandardizedRankedBoxImageHead"),
        ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"),
    ):
        cfg = cls.cfg.clone()
        cfg.merge_from_list([key, value])
        assert structure_of(cfg) != cls.structure


def test_compared_systems_are_told_apart_by_their_structure(known_peers):
    """But for COVID-CT's networks, whose configurations differ in what they see of a slice."""
    structures = {item.name: item.structure for item in known_peers}
    del structures["peers/covid_ct_self_trans"], structures["peers/covid_ct_lungs"]
    assert len(set(structures.values())) == len(structures)
    (patches,) = pick(known_peers, "peers/xu_resnet18")
    cfg = patches.cfg.clone()
    cfg.merge_from_list(["MODEL.PATCHES.PLACE", False])
    assert structure_of(cfg) != patches.structure


def test_a_folder_without_configs_is_one_clear_error(tmp_path):
    with pytest.raises(CTMaskNetError, match="no config here"):
        variants(tmp_path)
