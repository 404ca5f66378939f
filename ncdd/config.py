"""The root of every configuration, and the check that nothing in it is misspelt, missing or of the wrong type."""

import difflib
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Node = dict[str, Any]
PLAIN = ("callbacks", "study", "distill")  # nodes that are no call


@dataclass
class Study:
    """The figure that a sweep ends with, and the table beside it; see `ncdd.report`.

    figure: its file's name, None for the sweep's.  panels: a row of panels a metric.
    columns: the swept setting with a column of panels for each of its values.  x: the swept setting against which
    final values are drawn; None draws curves over epochs.
    """

    figure: str | None = None
    panels: list[str] = field(default_factory=list)
    columns: str | None = None
    x: str | None = None


@dataclass
class Distill:
    """What all distillation methods share; their YAMLs refer to it.

    images_per_class: of the synthetic set; a step of a step-wise one.  init: real, noise, or a coreset's name.
    iterations: outer steps.  every: of them between two evaluations, checkpoints and image grids.
    budget: images_per_class -> iterations, for a recipe in which these go by the size of the set.
    kernel: of the methods by kernel regression, a name of `ncdd.kernels`.
    objectives: what each value of `objective` brings, where a method's YAML picks its defaults by it.
    """

    images_per_class: int = 1
    init: str = "real"
    learn_labels: bool = False
    iterations: int = 1000
    every: int = 100
    kernel: str = "fc1"
    objectives: Node = field(default_factory=dict)
    budget: Node = field(default_factory=dict)


@dataclass
class Config:
    """One field a group of conf/, and what belongs to none; Hydra refuses any other key at the top."""

    name: str = "ncdd"
    seed: int = 0
    resume: bool = False
    figures: bool = True
    checkpoint: str | None = None
    distilled: str | None = None
    objective: str | None = None
    study: Study = field(default_factory=Study)
    distill: Distill = field(default_factory=Distill)
    task: Node = field(default_factory=dict)
    ood: Node = field(default_factory=dict)
    dataset: Node = field(default_factory=dict)
    model: Node = field(default_factory=dict)
    head: Node = field(default_factory=dict)
    method: Node = field(default_factory=dict)
    loss: Node = field(default_factory=dict)
    optimizer: Node = field(default_factory=dict)
    scheduler: Node = field(default_factory=dict)
    trainer: Node = field(default_factory=dict)
    callbacks: Node = field(default_factory=dict)
    logger: Node = field(default_factory=dict)


ConfigStore.instance().store(name="schema", node=Config)


class ConfigError(ValueError):
    """Every mistake of a configuration, one a line."""


def check(config: Mapping[str, Any], wired: Mapping[str, Collection[str]]) -> None:
    """Raise a ConfigError that names every mistake in the nodes of `config` that have a `_target_`.

    config: plain containers, resolved.  wired: by path of a node, the arguments that the program itself passes to it.
    Each target's signature is bound: unknown arguments (with the nearest known one), missing ones, wrong types.
    """
    known = {f.name for f in fields(Config)}
    mistakes = [f"{key}: no such setting; {suggest(key, known)}" for key in config if key not in known]
    nodes = {name: config.get(name) for name in known} | {
        f"callbacks.{name}": node for name, node in (config.get("callbacks") or {}).items()
    }
    mistakes += [
        f"{path}: no _target_ among {', '.join(node)}; this group's choices have one"
        for path, node in nodes.items()
        if isinstance(node, Mapping) and node and "_target_" not in node and path not in PLAIN
    ]
    mistakes += _mistakes(config, "", wired)
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def check_objective(config: DictConfig) -> None:
    """Raise ValueError for an objective that the method's YAML has no settings of."""
    known = config.distill.objectives
    if known and config.objective not in known:
        raise ValueError(f"objective={config.objective}: choose from {', '.join(known)}")


def misspelt(overrides: Sequence[str], conf: str) -> list[str]:
    """The overrides that name no setting, one line each with what was probably meant; [] if none does.

    Hydra stops at the first, and advises to add it to the configuration as a new key.
    """
    left = [re.sub(r"^([^=]*=[^\\[{(,]*),.*", r"\1", override) for override in overrides]  # of a sweep the first value
    unknown: list[str] = []
    others: list[str] = []
    with initialize_config_dir(conf, version_base="1.3"):
        cfg = compose("config")
        while not others:
            try:
                cfg = compose("config", left)
                break
            except (HydraException, OmegaConfBaseException) as error:
                found = re.search(r"Could not override '([^']+)'", str(error))
                kept = [override for override in left if not found or override.split("=")[0] != found[1]]
                if found and len(kept) < len(left):
                    unknown.append(found[1])
                    left = kept
                else:
                    others.append(one_line(error))
    lines = []
    for key in unknown:
        node, elsewhere, (name, *below) = cfg, "", key.split(".")
        while below and isinstance(child := OmegaConf.select(node, name), DictConfig):
            if OmegaConf.is_interpolation(node, name):
                elsewhere = OmegaConf.to_container(node, resolve=False)[name][2:-1]  # type: ignore[index, call-overload]
            node, (name, *below) = child, below
        if elsewhere and name in node:
            lines.append(f"{key}: it is that of {elsewhere}; set it there")
        else:
            lines.append(f"{key}: no such setting; {suggest(name, [str(known) for known in node])}")
    return lines + others if lines else []


def one_line(error: Exception) -> str:
    """What Hydra says, without its search path, and with the reason of a value that does not fit."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        near = difflib.get_close_matches(choice, error.options, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{group}={choice}: no such choice; {meant}choose from {', '.join(error.options)}"
    if isinstance(cause := error.__cause__, OmegaConfBaseException) and "Error merging override" in str(error):
        override = str(error).removeprefix("Error merging override ")
        return f"{override}: {str(cause).splitlines()[0]}"
    if isinstance(error, OmegaConfBaseException) and "distill.budget" in str(error):
        key = error.full_key
        return f"{key}: distill.budget of this recipe has none for so many images a class; set {key}"
    return str(error)


def suggest(word: str, known: Collection[str]) -> str:
    """`did you mean ...?`, or the choices where none is near."""
    names = {name.lower(): name for name in known if not name.startswith("_")}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return f"did you mean {names[near[0]]}?" if near else f"choose from {', '.join(sorted(names.values())) or 'none'}"


def _mistakes(node: Any, path: str, wired: Mapping[str, Collection[str]]) -> Iterator[str]:
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        yield from _node_mistakes(node, path, wired.get(path, ()))
    for key, value in node.items():
        yield from _mistakes(value, f"{path}.{key}" if path else str(key), wired)


def _node_mistakes(node: Mapping[str, Any], path: str, wired: Collection[str]) -> Iterator[str]:
    try:
        target = locate(str(node["_target_"]))
    except ValueError as error:
        yield f"{path}._target_: {error}"
        return
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a class in C
        return
    hints = _hints(target)
    given = {str(key): value for key, value in node.items() if key not in ("_target_", "_partial_", "_recursive_")}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    settable = [n for n in named if n not in wired and n != "self"]
    for key, value in given.items():
        if key not in settable:
            if not open_ended:
                yield f"{path}.{key}: {node['_target_']} takes no {key!r}; {suggest(key, settable)}"
        elif value == "???":
            yield f"{path}.{key}: must be given, {path}.{key}=..."
        elif not _fits(value, hints.get(key, Any)):
            yield f"{path}.{key}={value!r}: {_describe(hints[key])} expected"
    if not node.get("_partial_"):
        for name in settable:
            if name not in given and parameters[name].default is inspect.Parameter.empty:
                yield f"{path}.{name}: missing, {node['_target_']} needs it"


def locate(path: str) -> Callable[..., Any]:
    """The object at a dotted path; ValueError that names the part that is not there, and its neighbours."""
    module, parts = None, path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise ValueError(f"{path} needs the package {error.name}, which is not installed") from error
            continue
        found: Any = module
        for part in parts[cut:]:
            if not hasattr(found, part):
                raise ValueError(f"{path}: no {part!r} there; {suggest(part, getattr(found, '__all__', dir(found)))}")
            found = getattr(found, part)
        return found
    raise ValueError(f"{path}: no module {parts[0]!r}")


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a library's annotations need not be importable at run time
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be of that type; what a YAML cannot show (objects, callables) passes."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return isinstance(value, list | tuple) and all(_fits(item, a) for item in value for a in arguments[:1])
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(hint) and origin is None and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint) or (isinstance(value, str) and issubclass(hint, PurePath))
    return True


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)
