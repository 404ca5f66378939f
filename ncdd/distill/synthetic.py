"""`SyntheticSet`: a distilled dataset and everything that is needed to use it elsewhere.

Shapes: N images of C x H x W pixels, K classes; a step-wise set has T inner steps of B images.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from ncdd.data.distilled import STEPWISE, channels_first, normalisation_of, read, whitening_of
from ncdd.data.images import Normalisation
from ncdd.data.pixels import denormalise, normalise
from ncdd.data.whitening import Whitening, packed
from ncdd.distill.unrolled import Adam, GradientDescent
from ncdd.runfolder import replacing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """Images, labels and where they come from; as a torch Dataset, its items are (image (C, H, W), label).

    images:        float32 (N, C, H, W), normalised by `normalisation`, then by `whitening`.
    labels:        int64 (N,), or float32 (N, K): soft labels, or regression targets (KIP's and FRePo's).
    dataset:       the name of the real one in conf/dataset, None where it is not known.
    class_names:   K names; empty where they are not known.
    normalisation, whitening: from pixels in [0, 1] to these images; None for unknown and for none.
    step_sizes:    (T,) of a step-wise set (Wang et al. 2018), whose networks are trained by T steps;
    order:         int64 (T, B), the images of each step. Both or none; `ncdd.distill.unrolled.Steps` takes them.
    inner:         what these steps are steps of, for a step-wise set.
    method, config, commit, accuracy: how it was made, and how well fresh networks did when it was saved.
    """

    images: Tensor
    labels: Tensor
    dataset: str | None = None
    class_names: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    whitening: Whitening | None = None
    step_sizes: Tensor | None = None
    order: Tensor | None = None
    inner: GradientDescent | Adam = field(default_factory=GradientDescent)
    method: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not self.images.is_floating_point():
            raise ValueError(f"images: normalised floats (N, C, H, W) needed, found {_describe(self.images)}")
        if len(self.labels) != len(self.images) or self.labels.ndim not in (1, 2):
            raise ValueError(f"labels: (N,) or (N, K) for {len(self.images)} images, found {_describe(self.labels)}")
        if self.labels.is_floating_point() != (self.labels.ndim == 2):
            raise ValueError(f"labels: int64 (N,) or float32 (N, K) needed, found {_describe(self.labels)}")
        if self.class_names and int(self.classes.max()) >= self.num_classes:
            raise ValueError(f"labels: a class {int(self.classes.max())}, but {len(self.class_names)} class_names")
        if (self.step_sizes is None) != (self.order is None):
            raise ValueError("step_sizes and order: give both for a step-wise set, or neither")
        if self.order is not None and self.step_sizes is not None:
            if self.order.ndim != 2 or self.step_sizes.shape != self.order.shape[:1]:
                raise ValueError(
                    f"step_sizes of shape {tuple(self.step_sizes.shape)} and order of shape {tuple(self.order.shape)}: "
                    "(T,) and (T, B) are needed"
                )
            if not 0 <= int(self.order.min()) <= int(self.order.max()) < len(self.images):
                raise ValueError(f"order: indices of {len(self.images)} images are needed, found {_range(self.order)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def classes(self) -> Tensor:
        """(N,) int64: the labels, or the largest entry of soft ones."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def num_classes(self) -> int:
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return len(self.class_names) or int(self.labels.max()) + 1

    @property
    def stepwise(self) -> bool:
        """Whether it is meant for its own order and step sizes only."""
        return self.step_sizes is not None

    def to(self, device: torch.device | str) -> SyntheticSet:
        """Its images, labels, steps on `device`; what is only needed to show them stays."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            step_sizes=None if self.step_sizes is None else self.step_sizes.to(device),
            order=None if self.order is None else self.order.to(device),
        )

    def pixels(self) -> Tensor:
        """uint8 (N, C, H, W): whitening and normalisation undone, clamped to what a pixel can be.

        ValueError where the normalisation is not known.
        """
        if self.normalisation is None:
            raise ValueError("normalisation: unknown for this set, so that its images have no pixel values; give it")
        images = self.images.detach().cpu()
        if self.whitening is not None:
            images = self.whitening.inverse(images.double())
        return denormalise(images, self.normalisation)

    # ------------------------------------------------------------ files

    def save(self, path: str | Path) -> None:
        """One safetensors file, whole or not at all; `dataset=distilled dataset.path=...` and `load` read it."""
        named = {"images": self.images.float(), "labels": self.labels, "step_sizes": self.step_sizes}
        named |= {"order": self.order}
        if self.whitening is not None:
            named |= {"zca_upper": packed(self.whitening.matrix), "zca_mean": self.whitening.mean}
        tensors = {name: t.detach().cpu().contiguous() for name, t in named.items() if t is not None}
        if self.stepwise:
            _say_stepwise(Path(path))
        with replacing(Path(path)) as temporary:
            # not save_file, whose files are their owner's alone to read
            temporary.write_bytes(save(tensors, {"ncdd": json.dumps(self._metadata())}))

    def _metadata(self) -> dict[str, Any]:
        """JSON; what is unknown is left out."""
        known: dict[str, Any] = {name: getattr(self, name) for name in ("dataset", "method", "commit", "accuracy")}
        known |= {"class_names": list(self.class_names) or None, "config": self.config or None}
        if self.normalisation is not None:
            known |= {"mean": list(self.normalisation.mean), "std": list(self.normalisation.std)}
        if self.whitening is not None:
            known["zca_norm"] = self.whitening.norm
        known["stepwise"] = STEPWISE if self.stepwise else None
        known["inner"] = {"name": type(self.inner).__name__, **asdict(self.inner)} if self.stepwise else None
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dataset: str | None = None,
        normalisation: Normalisation | None = None,
        whitening: Whitening | None = None,
        only_pixels: bool = False,
        setting: str = "path",
    ) -> SyntheticSet:
        """Read what `save` wrote, or an npz as KIP (`images`, `labels`) and FRePo (`image`, `label`) publish, NHWC.

        dataset, normalisation, whitening: what the file does not say. uint8 images are pixels, need the second, and
            are transformed by both.
        only_pixels: such a file alone takes the two from here; floats of which the file does not say how they were
            normalised stay unknown.
        setting: what the path was given as, for the messages.
        """
        tensors, metadata = read(Path(path).expanduser(), setting=setting)
        images, labels = channels_first(tensors["images"]), tensors["labels"]
        if only_pixels and images.is_floating_point():
            normalisation = whitening = None
        normalisation = normalisation_of(metadata) or normalisation
        whitening = whitening_of(tensors, metadata) or whitening
        if not images.is_floating_point():
            if normalisation is None:
                raise ValueError(f"{path} holds pixels ({images.dtype}): give the normalisation to read them with")
            images = normalise(images, normalisation)
            images = images if whitening is None else whitening(images)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels.squeeze(1)
        return cls(
            images=images.float(),
            labels=labels.long() if labels.ndim == 1 else labels.float(),
            dataset=metadata.get("dataset", dataset),
            class_names=tuple(metadata.get("class_names", ())),
            normalisation=normalisation,
            whitening=whitening,
            step_sizes=tensors.get("step_sizes"),
            order=tensors.get("order"),
            inner=_inner(path, metadata.get("inner")),
            method=metadata.get("method"),
            config=metadata.get("config", {}),
            commit=metadata.get("commit"),
            accuracy=metadata.get("accuracy"),
        )

    def export_npz(self, path: str | Path) -> None:
        """`images` float32 (N, C, H, W), as they are trained on, and `labels`, for numpy.

        Where it is known, how they were normalised, too: `mean` and `std` of each channel and, whitened, `zca_matrix`,
        `zca_mean` and `zca_norm`. `load` reads them.
        """
        named: dict[str, Any] = {"images": self.images.detach().cpu().numpy()}
        named["labels"] = self.labels.detach().cpu().numpy()
        if self.normalisation is not None:
            named |= {"mean": self.normalisation.mean, "std": self.normalisation.std}
        if self.whitening is not None:
            named |= {"zca_matrix": self.whitening.matrix.numpy(), "zca_mean": self.whitening.mean.numpy()}
            named |= {} if self.whitening.norm is None else {"zca_norm": self.whitening.norm}
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **named)

    def export_folder(self, path: str | Path) -> None:
        """PNGs in pixel space, `CLASS/INDEX.png`, as torchvision's ImageFolder reads them.

        Class folders are named by index and name, so that they sort as the labels do. What a PNG cannot hold is
        lost: soft labels, steps, values outside 0..255 and fractions of a pixel.
        """
        digits = len(str(self.num_classes - 1))
        for index, (pixels, label) in enumerate(zip(self.pixels(), self.classes.tolist(), strict=True)):
            name = f"_{_file_name(self.class_names[label])}" if self.class_names else ""
            file = Path(path) / f"{label:0{digits}}{name}" / f"{index:05}.png"
            channels_last = pixels.permute(1, 2, 0).numpy()
            with replacing(file) as temporary:
                Image.fromarray(channels_last.squeeze(2) if len(pixels) == 1 else channels_last).save(temporary, "PNG")


@cache
def _say_stepwise(path: Path) -> None:
    """Once a file, which may be saved again and again."""
    _log.warning("%s is a step-wise set: it %s", path, STEPWISE)


def _inner(path: str | Path, saved: dict[str, Any] | None) -> GradientDescent | Adam:
    settings = dict(saved or {"name": "GradientDescent"})
    known = {kind.__name__: kind for kind in (GradientDescent, Adam)}
    kind = known.get(settings.pop("name", ""))
    if kind is None:
        raise ValueError(f"{path} was made for steps of an unknown optimiser, {saved}: {' and '.join(known)} are known")
    return kind(**settings)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _range(tensor: Tensor) -> str:
    return f"{int(tensor.min())}..{int(tensor.max())}"
