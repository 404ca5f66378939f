"""A task's configuration: what the command line does not name comes from the run of the checkpoint or synthetic set."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

Node = dict[str, Any]

# What made the features: the rest (trainer, logger, name) is of the command that looks at them.
INHERITED = (
    "seed", "dataset", "model", "head", "method", "loss", "optimizer", "scheduler", "callbacks", "trainer.precision",
)  # fmt: skip

MISSING = object()


def run_config(checkpoint: Path) -> Node | None:
    """The config.yaml of the run whose folder, checkpoints/ folder or checkpoint this is; None outside a run."""
    path = checkpoint.resolve()
    for folder in (path.parent, path.parent.parent) if path.is_file() else (path, path.parent):
        if (folder / "config.yaml").is_file():
            config = yaml.safe_load((folder / "config.yaml").read_text())
            if isinstance(config, dict) and config.keys() >= {"dataset", "model", "head", "method", "loss"}:
                return config
    return None


def set_config(distilled: Path) -> Node | None:
    """The configuration of the run that a synthetic set was made by, which its file holds; None where it does not."""
    if distilled.suffix != ".safetensors" or not distilled.is_file():
        return None
    with suppress(SafetensorError, json.JSONDecodeError), safe_open(distilled, framework="np") as file:
        config = json.loads((file.metadata() or {}).get("ncdd", "{}")).get("config")
        if isinstance(config, dict) and config.keys() >= {"dataset", "model", "head", "method", "loss"}:
            return config
    return None


def check_targets(run: Mapping[str, Any], overrides: Iterable[str], conf: Path, *, source: str) -> None:
    """Raise ValueError where what is inherited of a stranger's configuration calls what no YAML of `conf` does.

    A `_target_` is called, and a string with an interpolation is resolved: the file `source` must not choose what.
    """
    known = {target for path in conf.rglob("*.yaml") for target in _targets(yaml.safe_load(path.read_text()))}
    inherited = [_get(run, path) for path in _inherited(run, overrides)]
    stored, help = f"the configuration stored with {source}", "name dataset, model, head, method and callbacks yourself"
    for target in sorted({target for node in inherited for target in _targets(node)} - known):
        raise ValueError(f"{stored} names {target}, which no choice in conf/ does; {help}")
    for text in (text for node in inherited for text in _strings(node)):
        if "${" in text:
            raise ValueError(f"{stored} is not resolved, it has {text!r}; {help}")


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    if isinstance(node, Mapping):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for child in node:
            yield from _strings(child)


def named(overrides: Iterable[str]) -> set[str]:
    """The groups and settings that Hydra's overrides name: `dataset=mnist`, `+model.width=3`, `~callbacks.best`."""
    return {override.lstrip("+~").partition("=")[0] for override in overrides}


def inherit(config: Mapping[str, Any], run: Mapping[str, Any], overrides: Iterable[str]) -> Node:
    """`config` with the groups that no override names as they are in `run`'s, and single settings that one does kept.

    An experiment names every group. All plain containers; neither argument is changed.
    """
    mine, result = named(overrides), deepcopy(dict(config))
    for path in _inherited(run, mine):
        _set(result, path, deepcopy(_get(run, path)))
        for setting in sorted(name for name in mine if name.startswith(f"{path}.")):
            _set(result, setting, _get(config, setting))
    return result


def _inherited(run: Mapping[str, Any], overrides: Iterable[str]) -> list[str]:
    """The paths that come from `run`."""
    mine = named(overrides)
    if "experiment" in mine:
        return []
    return [p for p in INHERITED if _get(run, p) is not MISSING and not {p, p.partition(".")[0]} & mine]


def _get(node: Any, path: str) -> Any:
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return MISSING
        node = node[key]
    return node


def _set(node: Node, path: str, value: Any) -> None:
    """MISSING takes the setting away."""
    *parents, last = path.split(".")
    for key in parents:
        node = node.setdefault(key, {})
    if value is MISSING:
        node.pop(last, None)
    else:
        node[last] = value
