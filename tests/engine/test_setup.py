import pytest

from ctmasknet.engine.setup import read_cfg, resolve_epochs
from ctmasknet.errors import CTMaskNetError


@pytest.mark.parametrize(
    ("config", "slices", "iterations", "period"),
    [("seg", 650, 65_000, 6_500), ("cls", 3_000, 18_750, 1_875), ("cls", 3_001, 18_757, 1_876)],
)
def test_the_papers_epochs(repository, config, slices, iterations, period):
    cfg = read_cfg(str(repository / "configs" / f"{config}.yaml"))
    resolve_epochs(cfg, slices)
    assert iterations == cfg.SOLVER.MAX_ITER
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == period


def test_iterations_of_the_command_line_decide(tiny_cfg):
    tiny_cfg.SOLVER.MAX_ITER = 3
    resolve_epochs(tiny_cfg, 100, ["SOLVER.MAX_ITER", "3"])
    assert (tiny_cfg.SOLVER.MAX_ITER, tiny_cfg.SOLVER.MAX_EPOCHS) == (3, 0)
    assert tiny_cfg.TEST.EVAL_PERIOD == 63


def test_both_units_on_the_command_line(tiny_cfg):
    given = ["SOLVER.MAX_ITER", 3, "SOLVER.MAX_EPOCHS", 5]
    tiny_cfg.merge_from_list(given)
    with pytest.raises(CTMaskNetError, match="are both given"):
        resolve_epochs(tiny_cfg, 100, given)


def test_negative(tiny_cfg):
    tiny_cfg.TEST.EVAL_EPOCHS = -1
    with pytest.raises(CTMaskNetError, match=r"TEST.EVAL_EPOCHS is -1"):
        resolve_epochs(tiny_cfg, 100)


def test_light_configurations_keep_iterations(repository):
    cfg = read_cfg(str(repository / "configs" / "cls_light.yaml"))
    resolve_epochs(cfg, 77)
    assert (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD) == (1000, 250)
