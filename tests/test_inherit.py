"""What a task takes from the run of its checkpoint, and what from the command line."""

from functools import partial
from pathlib import Path

import pytest
import yaml

import run
from ncdd import config
from ncdd.inherit import check_targets, inherit, run_config
from tests.test_config import plain

RUN = {
    "seed": 3, "dataset": {"name": "a", "size": 1}, "model": {"width": 8}, "head": {}, "method": {}, "loss": {},
    "trainer": {"precision": "64-true", "devices": 8}, "callbacks": {"last": {}, "collapse": {"vci": False}},
}  # fmt: skip
MINE = {
    "seed": 0, "dataset": {"name": "b", "size": 2}, "model": {"width": 64}, "head": {}, "method": {}, "loss": {},
    "trainer": {"precision": "32-true", "devices": 1}, "callbacks": {"collapse": {"vci": True}}, "ood": {"name": "c"},
}  # fmt: skip


def test_what_is_not_named_comes_from_the_run():
    result = inherit(MINE, RUN, ["task=measure", "checkpoint=x", "dataset@ood=c", "trainer.devices=1"])
    assert result == {**RUN, "trainer": {"precision": "64-true", "devices": 1}, "ood": {"name": "c"}}


def test_a_named_group_is_the_command_lines_and_a_named_setting_overrides_the_runs():
    result = inherit(MINE, RUN, ["dataset=b", "+model.width=64", "~callbacks.last", "seed=0"])
    assert result["dataset"] == MINE["dataset"]
    assert result["model"] == {"width": 64}
    assert result["callbacks"] == {"collapse": {"vci": False}}
    assert result["seed"] == 0
    assert inherit(MINE, RUN, ["dataset.size=2"])["dataset"] == {"name": "a", "size": 2}


def test_an_experiment_names_everything():
    assert inherit(MINE, RUN, ["experiment=mnist"]) == MINE


def test_arguments_are_not_changed():
    before = yaml.safe_dump([MINE, RUN])
    inherit(MINE, RUN, ["model.width=1"])["model"]["width"] = 5
    assert yaml.safe_dump([MINE, RUN]) == before


def test_the_run_is_found_from_its_folder_its_checkpoints_and_a_checkpoint(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(RUN))
    file = tmp_path / "run/checkpoints/last.ckpt"
    file.touch()
    assert all(run_config(path) == RUN for path in (file, file.parent, file.parent.parent))
    assert run_config(tmp_path) is None
    assert run_config(tmp_path / "nowhere") is None
    (tmp_path / "config.yaml").write_text("other: 1")
    assert run_config(tmp_path) is None


@pytest.mark.parametrize(
    ("method", "later"),
    [
        (["method=joint", "head=etf"], ["method.partition"]),
        (["method=matching"], ["method.partition"]),
        (["method=unrolled"], []),
    ],
)
def test_a_set_made_before_a_setting_was_added_can_still_be_looked_at(method, later):
    stored = plain(*method)
    later = [*later, *(f"callbacks.distilled.{name}" for name in ("own_steps", "architectures", "head"))]
    for setting in later:
        *path, last = setting.split(".")
        node = stored
        for key in path:
            node = node[key]
        del node[last]
    config.check(inherit(plain("task=evaluate"), stored, ["task=evaluate"]), run.WIRED)


def test_a_strangers_run_cannot_choose_what_is_called():
    conf = Path(__file__).parents[1] / "conf"
    check = partial(check_targets, conf=conf, source="x.ckpt")
    check({"model": {"_target_": "ncdd.models.MLP"}, "optimizer": {"_target_": "torch.optim.SGD"}}, [])
    for inside in ({"x": {"_target_": "torch.load", "f": "p.pt"}}, {"x": [{"y": {"_target_": "os.system"}}]}):
        with pytest.raises(ValueError, match=r"x.ckpt names (torch\.load|os\.system), which no choice in conf/ does"):
            check({"callbacks": inside}, [])
        check({"callbacks": inside}, ["callbacks=default"])  # not inherited


def test_a_strangers_run_cannot_choose_what_an_interpolation_calls(tmp_path):
    """OmegaConf's own resolvers can make a node with a `_target_` out of a string."""
    conf = Path(__file__).parents[1] / "conf"
    hidden = "${oc.create:{_target_: os.mkdir, _args_: [made]}}"
    for dataset in ({"source": hidden}, {"nodes": [{hidden: 1}]}):
        with pytest.raises(ValueError, match="not resolved"):
            check_targets({"dataset": dataset}, [], conf, source="set.safetensors")
