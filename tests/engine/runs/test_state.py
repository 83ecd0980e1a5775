"""A checkpoint's training state of another form is told before it is used."""

import copy

import pytest
import torch

from ctmasknet.engine.random_states import RandomStates, random_state
from ctmasknet.engine.runs.state import resumed_state
from ctmasknet.schema import UnlikeForm


@pytest.fixture
def begun():
    """State after a step, and what a training has at its start."""

    def make():
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)

    optimizer, schedule = make()
    optimizer.step(), schedule.step()
    state = {
        **{"iteration": 0, "data_seed": 7, "run": None},
        "_trainer": {"iteration": 0, "optimizer": optimizer.state_dict()},
        "hooks": {
            "LRScheduler": schedule.state_dict(),
            "Validation": {"best": None, "since_best": 0, "stopped": False, "results": None},
            "MetricWriters": {
                "scalars": {"loss": {"smooth": True, "values": [[0.5, 0]]}},
                "files": {"metrics.json": {"last_write": -1, "bytes": 9}},
            },
            "GatherBadSlices": {"found": "{}"},
        },
    }
    fresh, its = make()
    trainer = {"iteration": 0, "optimizer": fresh.state_dict()}
    return copy.deepcopy(state), its.state_dict(), trainer, fresh


def test_what_was_saved_is_taken_as_it_is(begun):
    state, *own = begun
    found = resumed_state(state, *own)
    assert found["hooks"] == state["hooks"]
    assert (
        found["_trainer"]["optimizer"]["param_groups"]
        == (state["_trainer"]["optimizer"]["param_groups"])
    )
    own[-1].load_state_dict(found["_trainer"]["optimizer"])
    own[-1].step()


@pytest.mark.parametrize(
    ("places", "value", "words"),
    [
        (("iteration",), "0", "iteration is '0', where a whole number from 0"),
        (("data_seed",), 1.5, "data_seed is 1.5"),
        (("run",), {"run": 1}, "run.run is 1"),
        (("_trainer", "optimizer"), [], "_trainer.optimizer is a list of 0"),
        (("_trainer", "optimizer", "param_groups", 0, "lr"), "x", r"param_groups\[0\].lr is 'x'"),
        (("_trainer", "optimizer", "param_groups", 0, "params"), [], "a list of 1"),
        (("_trainer", "optimizer", "state", 0), {}, "an object of exp_avg, exp_avg_sq, step"),
        (("_trainer", "optimizer", "state", 5), {}, "state is 5, where the number of a weight"),
        (("_trainer", "optimizer", "state", 0, "exp_avg"), torch.ones(2), "the weight's shape"),
        (
            ("_trainer", "optimizer", "state", 0, "exp_avg_sq"),
            torch.full((3,), torch.nan),
            "numbers of the weight's shape",
        ),
        (("hooks", "LRScheduler", "last_epoch"), "x", "hooks.LRScheduler.last_epoch is 'x'"),
        (("hooks", "Validation", "since_best"), None, "hooks.Validation.since_best is null"),
        (("hooks", "MetricWriters", "files", "metrics.json"), 3, "where an object is expected"),
        (("hooks", "MetricWriters", "scalars", "loss", "values"), [1], "a value and its iteration"),
        (("hooks", "RandomStates"), {"processes": [1]}, "where an object is expected"),
    ],
)
def test_a_state_of_another_form_is_told(begun, places, value, words):
    state, *own = begun
    inner = state
    for place in places[:-1]:
        inner = inner[place]
    inner[places[-1]] = value
    with pytest.raises(UnlikeForm, match=words):
        resumed_state(state, *own)


def test_methods_are_no_state(begun):
    """torch takes any name of a schedule's state for one of its own."""
    state, *own = begun
    state["hooks"]["LRScheduler"]["step"] = "x"
    assert "step" not in resumed_state(state, *own)["hooks"]["LRScheduler"]


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
@pytest.mark.parametrize("value", [None, (3, (1, 2), None), torch.zeros(4), ["x", torch.ones(2)]])
def test_random_states_are_tried(key, value):
    states, before = RandomStates(), torch.get_rng_state()
    states.load_state_dict({"processes": [random_state()]})
    with pytest.raises(ValueError, match="its random states are none"):
        states.load_state_dict({"processes": [{**random_state(), key: value}]})
    assert torch.equal(torch.get_rng_state(), before)
