"""The stateful shell around :func:`measure`: batches in, merged across processes, values out. It holds no maths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import reduce
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from .inputs import checked_head, checked_samples
from .measure import (
    Collapse,
    Conventions,
    Head,
    Weighting,
    compact_positions,
    measure,
    observed,
    reference_frame,
    summarise,
)
from .statistics import Moments, Precision, ShiftedSums, measuring, merge_moments
from .sweep import Frame, Sweep, linear_decisions, mean_frame, sweep

CACHE = ("features", "labels", "logits")
SHIFTED = tuple(f.name for f in fields(ShiftedSums) if f.init)
SWEPT = ("count_K", "square_K", "share_K", "directional_K", "hits_4K")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NeuralCollapse(Metric):
    """Neural Collapse of all samples since ``reset``, as a torchmetrics metric.

    Up to ``memory_budget`` bytes of features are kept (joining them takes as much again for a moment) and measured in
    two passes when asked. Beyond it they go batch by batch into one-pass sums. The budget holds for the union of all
    processes: if one of them has streamed, or the gathered features would exceed it, all stream, so that any mixture of
    processes gives the values of one.

    Streaming, what depends on the final means (NC4, NCC accuracy, directional CDNV, NC1 with class-balanced Sw unless
    the classes are equal) takes a second sweep over the data, and is left out until it was made::

        if metric.needs_second_pass:      # on every process
            for x, y in loader:
                metric.update_decisions(features(x), y)

    With means known beforehand (``set_reference``) the decisions against those need no second sweep. The other
    arguments are those of :func:`measure`.
    """

    full_state_update = False
    is_differentiable = False
    features: list[Tensor]
    labels: list[Tensor]
    logits: list[Tensor]
    pilot_KD: list[Tensor]
    count_K: list[Tensor]
    own_count_K: Tensor
    train_count_K: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        memory_budget: int = 2**31,
        weighting: Weighting = "balanced",
        ddof: int = 0,
        scale_by_K: bool = True,
        precision: Precision = "exact",
        vci: bool = True,
        central_path: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: collapse is measured between 2 or more classes")
        if memory_budget < 0:
            raise ValueError(f"memory_budget={memory_budget}: expected a number of bytes >= 0")
        self.num_classes, self.memory_budget, self.ignore_index = num_classes, memory_budget, ignore_index
        self.conventions = Conventions(weighting, ddof, scale_by_K, precision, vci, central_path)
        self._head = Head(None, None)
        self._reference: Tensor | None = None
        self._frame: Frame | None = None
        for name in CACHE:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        for name in SHIFTED:  # one entry for each process or merged metric that streamed
            self.add_state(name, default=[], dist_reduce_fx=None)
        for prefix in ("own", "train"):
            for name in SWEPT:
                shape = (4, num_classes) if name == "hits_4K" else (num_classes,)
                dtype = torch.int64 if name in ("count_K", "hits_4K") else torch.float64
                self.add_state(f"{prefix}_{name}", default=torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
            self.add_state(f"{prefix}_decided", default=torch.tensor(0), dist_reduce_fx="sum")

    def set_head(self, weight_KD: Tensor, bias_K: Tensor | None = None) -> None:
        """The linear head to measure; streaming decisions use the one set when their batch arrives."""
        self._head = Head(*checked_head(weight_KD.clone(), bias_K, self.num_classes, weight_KD.shape[-1]))
        self._computed = None

    def set_reference(self, mean_KD: Tensor) -> None:
        """Class means measured elsewhere (the train means): set before the first update for one-pass decisions."""
        self._reference = mean_KD.detach().double().clone()
        self._forget("train")

    def update(self, features: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        batch = self._checked(features, labels, logits)
        if self.features and (logits is None) == bool(self.logits):
            raise ValueError("logits were passed to some updates only: pass them always or never")
        for name, tensor in zip(CACHE, batch, strict=True):
            if tensor is not None:  # a copy: the caller may reuse or modify what a hook handed out
                getattr(self, name).append(tensor.clone())
        if self._frame is not None:  # the means move: what was swept with the old ones is void
            self._frame = None
            self._forget("own")
        if self._cached_bytes() > self.memory_budget:
            self._stream()

    def update_decisions(self, features: Tensor, labels: Tensor, logits: Tensor | None = None) -> None:
        """One batch of the second sweep, over the same samples as the first in any order."""
        if self._frame is None and not self.needs_second_pass:
            raise RuntimeError("update_decisions is for features beyond memory_budget: ask needs_second_pass first")
        assert self._frame is not None
        x, y, z = self._checked(features, labels, logits)
        with measuring(x.device):
            self._sweep_into("own", self._frame, x, y, z)
        self._computed = None

    @property
    def needs_second_pass(self) -> bool:
        """Whether the samples were streamed and not yet swept again. A collective call: ask on every process."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync), measuring(self.device):
            moments = self.moments()
            if moments is None:
                return False
            self._frame = _frame_of(moments)
            return not torch.equal(self.own_count_K, moments.count_K)

    def moments(self) -> Moments | None:
        """Of all samples of this process in all ``num_classes``, or None while nothing was streamed."""
        if not self.count_K:
            return None
        self._stream()
        contributions = zip(*(getattr(self, name) for name in SHIFTED), strict=True)
        return reduce(merge_moments, (ShiftedSums(*tensors).moments() for tensors in contributions))

    def measure(self) -> Collapse:
        """Everything :func:`measure` returns, of the samples of all processes."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._collapse()

    def compute(self) -> dict[str, float]:
        return self._collapse().values

    def reset(self) -> None:
        super().reset()
        self._frame = None

    def _checked(self, features: Tensor, labels: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        return checked_samples(features, labels, logits, self.num_classes, self.ignore_index)

    def _head_on(self, device: torch.device) -> Head:
        return Head(*(None if t is None else t.to(device) for t in (self._head.weight_KD, self._head.bias_K)))

    def _collapse(self) -> Collapse:
        moments = self.moments()
        return self._measure_cached() if moments is None else self._summarise(moments)

    def _measure_cached(self) -> Collapse:
        if not len(self.features):
            raise ValueError("no samples: call update before compute")
        features, labels = dim_zero_cat(self.features), dim_zero_cat(self.labels)
        head, c = self._head_on(features.device), self.conventions
        return measure(
            features,
            labels,
            weight_KD=head.weight_KD,
            bias_K=head.bias_K,
            logits_NK=dim_zero_cat(self.logits) if len(self.logits) else None,
            num_classes=self.num_classes,
            reference_means_KD=self._reference,
            **vars(c),
        )

    def _summarise(self, moments: Moments) -> Collapse:
        with measuring(moments.mean_KD.device):
            frame = _frame_of(moments)
            own = train = None
            if torch.equal(self.own_count_K, moments.count_K):
                own = self._swept("own", frame)
            if torch.equal(self.train_count_K, moments.count_K) and self._reference is not None:
                reference = reference_frame(self._reference, self.num_classes, moments.count_K.nonzero().squeeze(1))
                train = (reference, self._swept("train", reference))
            present = frame.position[:-1] >= 0
            head = self._head_on(moments.mean_KD.device)
            return summarise(moments.select(present), frame, own, head, self.conventions, train)

    def _cached_bytes(self) -> int:
        return sum(t.nbytes for name in CACHE for t in getattr(self, name))

    def _stream(self) -> None:
        """Moves what is cached into the one-pass sums."""
        if not len(self.labels):
            return
        with measuring(self.features[0].device):
            if not self.count_K:
                zeros = ShiftedSums.zeros(self.num_classes, self.features[0].shape[1], self.features[0].device)
                self._start_streaming(zeros)
            sums = ShiftedSums(*(getattr(self, name)[-1] for name in SHIFTED))
            for x, y, logits in self._joined():
                sums.update(x, y, self.conventions.precision)
                if self._reference is not None:
                    self._sweep_into("train", reference_frame(self._reference, self.num_classes, y), x, y, logits)
        for name in CACHE:
            setattr(self, name, [])

    def _joined(self, rows: int = 2048) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The cached batches, small ones joined to about ``rows`` samples, in memory that the next ones overwrite."""
        room = self.features[0].new_empty(rows + max(map(len, self.labels)), self.features[0].shape[1])
        logits = self.logits if len(self.logits) else [None] * len(self.labels)
        batches = zip(accumulate(map(len, self.labels)), self.features, self.labels, logits, strict=True)
        for _, group in groupby(batches, key=lambda batch: batch[0] // rows):
            _, x, y, z = zip(*group, strict=True)
            features = x[0] if len(x) == 1 else torch.cat(x, out=room[: sum(map(len, x))])
            yield features, torch.cat(y), None if z[0] is None else torch.cat(z)

    def _start_streaming(self, sums: ShiftedSums) -> None:
        for name in SHIFTED:
            setattr(self, name, [getattr(sums, name)])

    def _sweep_into(self, prefix: str, frame: Frame, x: Tensor, y: Tensor, logits: Tensor | None) -> None:
        head = self._head_on(x.device)
        linear = linear_decisions(x, logits, head.weight_KD, head.bias_K)
        part = sweep(x, y, frame, linear, precision=self.conventions.precision)
        inside = frame.position[:-1] >= 0
        for name in SWEPT:
            total = getattr(self, f"{prefix}_{name}").clone()
            total[..., inside] += getattr(part, name)
            setattr(self, f"{prefix}_{name}", total)
        decided = getattr(self, f"{prefix}_decided")
        setattr(self, f"{prefix}_decided", decided + len(y) * part.decided)

    def _forget(self, prefix: str) -> None:
        for name in (*SWEPT, "decided"):
            setattr(self, f"{prefix}_{name}", torch.zeros_like(getattr(self, f"{prefix}_{name}")))
        self._computed = None

    def _swept(self, prefix: str, frame: Frame) -> Sweep:
        inside = frame.position[:-1] >= 0
        sums = {name: getattr(self, f"{prefix}_{name}")[..., inside] for name in SWEPT}
        decided = getattr(self, f"{prefix}_decided") == sums["count_K"].sum()
        return Sweep(**sums, decided=bool(decided))

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        """Brings all processes to the same layout, streamed or cached, before torchmetrics gathers the states."""
        first = self.features[0] if self.features else None
        layout = torch.tensor(
            [
                len(self.count_K),
                self._cached_bytes(),
                self.pilot_KD[0].shape[1] if self.count_K else 0 if first is None else first.shape[1],
                -1 if first is None else DTYPES.index(first.dtype),
                -1 if not self.logits else DTYPES.index(self.logits[0].dtype),
            ],
            device=self.device,
        )
        layouts = torch.stack(dist_sync_fn(layout, group=process_group or self.process_group))
        streamed, cached_bytes = layouts[:, :2].sum(dim=0).tolist()
        num_features, features_dtype, logits_dtype = layouts[:, 2:].amax(dim=0).tolist()
        if streamed or cached_bytes > self.memory_budget:
            self._contribute_sums(num_features)
        else:
            self._contribute_cache(num_features, features_dtype, logits_dtype)
        super()._sync_dist(dist_sync_fn, process_group)

    def _contribute_sums(self, num_features: int) -> None:
        self._stream()
        moments = self.moments()
        if moments is None:
            self._start_streaming(ShiftedSums.zeros(self.num_classes, num_features, self.device))
        elif len(self.count_K) > 1:
            self._start_streaming(ShiftedSums.of(moments))

    def _contribute_cache(self, num_features: int, features_dtype: int, logits_dtype: int) -> None:
        """Widest type of all processes (codes into DTYPES); empty tensors where this one has no samples."""
        if num_features:
            widths = {"features": num_features, "logits": self.num_classes}
            for name, code in (("features", features_dtype), ("logits", logits_dtype)):
                if code >= 0:
                    empty = torch.empty(0, widths[name], dtype=DTYPES[code], device=self.device)
                    setattr(self, name, [torch.cat([empty, *(t.to(empty.dtype) for t in getattr(self, name))])])
            self.labels = [torch.cat([torch.empty(0, dtype=torch.int64, device=self.device), *self.labels])]

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """States follow the module to another device but are never cast, even by ``model.to(torch.float16)``."""
        return super()._apply(lambda t: t.to(fn(t.new_empty(0)).device), exclude_state)


def _frame_of(moments: Moments) -> Frame:
    classes = observed(moments.count_K)
    return mean_frame(moments.mean_KD[classes], compact_positions(classes, len(moments.count_K)))
