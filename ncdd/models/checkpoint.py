"""Finding saved weights, reading them without unpickling code, and putting them into a body and a head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
NESTED = ("state_dict", "model_state_dict", "model", "net")  # where training scripts put the weights of a network
SHOWN = 3  # keys of each kind that a mismatch names


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and how far training had come: epochs completed and optimizer steps, None where unknown."""

    path: Path
    weights: dict[str, Tensor]
    epochs: int | None
    steps: int | None


def files(path: Path) -> list[Path]:
    """The checkpoint, or those in a folder of them or in a run's folder, in the order of the numbers in their names.

    Raises FileNotFoundError where there is none.
    """
    if path.is_file():
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = [file for file in folder.glob("*") if file.suffix in SUFFIXES and not file.name.startswith(".")]
    if not found:
        what = f"no {', '.join(SUFFIXES)} file in this folder" if path.is_dir() else "there is no such file or folder"
        raise FileNotFoundError(f"checkpoint={path}: {what}")
    return sorted(found, key=lambda file: ([int(n) for n in re.findall(r"\d+", file.stem)], file.name))


def series(path: Path) -> list[tuple[int, Path]]:
    """(epochs completed, file) of each of `files(path)`, ascending, one file for each number of epochs.

    Where a file does not say, the number at the end of its name counts, or else its place in the order of names.
    """
    found: dict[int, Path] = {}
    for place, file in enumerate(files(path), start=1):
        epochs = read(file).epochs
        if epochs is None:
            number = re.search(r"(?:^|[-_=.]|epoch)(\d+)$", file.stem)
            epochs = int(number[1]) if number else place
        found[epochs] = file
    return sorted(found.items())


def network(body: nn.Module) -> nn.Module:
    """The body, or the network of somebody else that it wraps as `network`: its names are those users know."""
    return getattr(body, "network", body)


def read(path: Path) -> Checkpoint:
    """Read one file, on the CPU. Weights may lie in a wrapper (`state_dict`, `model`), their names begin by `module.`.

    A Lightning checkpoint counts epochs from 0 while they run, so that its epoch 0 is one epoch completed; other
    scripts' `epoch` is taken as it is.
    Raises ValueError for what is damaged, holds no weights, or would need code to be run.
    """
    if path.suffix == ".safetensors":
        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path} is damaged or not a safetensors file ({error})") from error
    else:
        content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, no state_dict: save model.state_dict()")
    weights = content
    while nested := next((weights[key] for key in NESTED if isinstance(weights.get(key), Mapping)), None):
        weights = nested
    tensors = {_bare(str(name)): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"checkpoint {path} holds no weights, only {', '.join(map(str, list(weights)[:SHOWN]))}")
    epoch, step = content.get("epoch"), content.get("global_step")
    return Checkpoint(
        path,
        tensors,
        epoch + ("pytorch-lightning_version" in content) if isinstance(epoch, int) else None,
        step if isinstance(step, int) else None,
    )


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its reader stumbled over
        if isinstance(error, UnpicklingError) and "weights only" in str(error).lower():
            raise ValueError(
                f"checkpoint {path} holds more than tensors and plain containers, and reading it would run code: "
                "load it where you trust it, and save its state_dict()"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"checkpoint {path} is damaged or not a checkpoint ({reason})") from error


def _bare(name: str) -> str:
    """Without what DistributedDataParallel and torch.compile put before a name."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def put(checkpoint: Checkpoint, body: nn.Module, head: nn.Linear) -> None:
    """Load the weights: those named like the body's (after any prefix), and the one linear layer left over as the head.

    Raises ValueError that names what is missing, left over or of another shape, before anything is changed.
    """
    body = network(body)
    wanted = body.state_dict()
    prefix = _prefix(checkpoint.weights, wanted)
    of_body = {name: checkpoint.weights[prefix + name] for name in wanted if prefix + name in checkpoint.weights}
    used = {prefix + name for name in of_body}
    rest = {name: w for name, w in checkpoint.weights.items() if name not in used}
    layer = _last_layer(rest)
    of_head = {} if layer is None else {n.removeprefix(layer): w for n, w in rest.items() if n.startswith(layer)}
    known = {(layer or "") + name for name in (*head.state_dict(), "bias")}
    complaints = [
        *_names("missing", [n for n in wanted if n not in of_body and not n.endswith("num_batches_tracked")]),
        *_names("unexpected", [name for name in rest if name not in known]),
        *_names("of another shape", _misshapen(of_body, wanted)),
        *(["no linear layer is left over for the head"] if layer is None else _head_complaints(of_head, head, layer)),
    ]
    if complaints:
        raise ValueError(
            f"checkpoint {checkpoint.path} is not of this model, head and dataset: {'; '.join(complaints)}"
        )
    body.load_state_dict(of_body, strict=False)
    head.load_state_dict(of_head, strict=False)


def _prefix(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What stands before the body's names: of all candidates the one under which most names and shapes agree."""
    first = next(iter(wanted))
    candidates = {name.removesuffix(first) for name in weights if name == first or name.endswith(f".{first}")}

    def agreeing(prefix: str) -> int:
        return sum(prefix + n in weights and weights[prefix + n].shape == w.shape for n, w in wanted.items())

    return max(sorted(candidates), key=agreeing, default="")


def _last_layer(rest: Mapping[str, Tensor]) -> str | None:
    """What stands before `weight` in the name of the only matrix so named; None where there is not just one."""
    matrices = [name for name, w in rest.items() if re.search(r"(^|\.)weight$", name) and w.ndim == 2]
    return matrices[0].removesuffix("weight") if len(matrices) == 1 else None


def _head_complaints(given: Mapping[str, Tensor], head: nn.Linear, layer: str) -> list[str]:
    complaints = []
    classes, features = given["weight"].shape
    if features != head.in_features:
        complaints.append(f"{layer}weight takes {features} features, the model gives {head.in_features}")
    if classes != head.out_features:
        complaints.append(f"{layer}weight has {classes} classes, the dataset {head.out_features}")
    if ("bias" in given) != (head.bias is not None):
        complaints.append(f"{layer}bias is {'there' if 'bias' in given else 'not there'}: the head's setting differs")
    return complaints


def _misshapen(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {tuple(w.shape)} instead of {tuple(wanted[name].shape)}"
        for name, w in given.items()
        if w.shape != wanted[name].shape
    ]


def _names(what: str, names: list[str]) -> list[str]:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what} {', '.join(names[:SHOWN])}{more}"] if names else []
