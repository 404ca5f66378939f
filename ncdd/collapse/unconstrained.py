"""The unconstrained-features model: its global minimum, in closed form or certified by its dual.

Features H (N, D) and classifier W (K, D), b (K,) are free variables of

    f = 1/N sum_i loss(W h_i + b, y_i) + head_decay/2 (||W||^2 + ||b||^2) + feature_decay/2 ||H||^2

(Zhu et al. 2021, eq. 3; Mixon et al. 2022). Over all factors of the logits ``Z = H W'`` the decays of W and H amount
to ``lambda ||Z||_*``, the nuclear norm, with ``lambda = sqrt(head_decay feature_decay)`` (Srebro 2004), so that the
problem is convex in (Z, b) once D is no less than the rank of the solution. It treats samples of a class alike; hence
there is a solution where they coincide (NC1), and A, (K, K), the logits of one sample of every class as rows times
``sqrt(n_k)``, stands for Z: its singular values are the same. Everything here is float64 and K x K; solutions are given
up to a rotation of the features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import cosines
from .inputs import choose
from .statistics import class_means

Loss = Literal["cross_entropy", "mse"]


@dataclass(frozen=True)
class Problem:
    """What f above is made of. count_K: samples of each class. bias: whether there is one, decayed as W is.

    Raises ValueError for a loss without theory, decays that are not positive, or a class without samples.
    """

    count_K: Tensor
    loss: Loss
    head_decay: float
    feature_decay: float
    bias: bool

    def __post_init__(self) -> None:
        choose("loss", self.loss, ("cross_entropy", "mse"))
        for name in ("head_decay", "feature_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive, or no minimum exists")
        if len(self.count_K) < 2 or int(self.count_K.min()) < 1:
            raise ValueError(f"count_K={self.count_K.tolist()}: 2 or more classes with a sample each are needed")

    @property
    def decay(self) -> float:
        """lambda, the price of the nuclear norm of the logits."""
        return (self.head_decay * self.feature_decay) ** 0.5

    @property
    def share_K(self) -> Tensor:  # noqa: N802 - the suffix is its shape
        return self.count_K.double() / self.count_K.sum()

    @property
    def balanced(self) -> bool:
        return bool((self.count_K == self.count_K[0]).all())

    def data_loss(self, logits_KK: Tensor) -> Tensor:
        """The mean over samples, from the logits of one sample of each class."""
        return self.share_K @ _losses(self.loss, logits_KK, torch.arange(len(logits_KK)))

    def objective(self, weight_KD: Tensor, feature_KD: Tensor, bias_K: Tensor) -> Tensor:
        """f of features that coincide within classes, row k being those of class k."""
        decays = self.head_decay * (weight_KD.square().sum() + bias_K.square().sum())
        decays = decays + self.feature_decay * (self.count_K.double() @ feature_KD.square().sum(dim=1))
        return self.data_loss(feature_KD @ weight_KD.T + bias_K) + decays / 2


@dataclass(frozen=True)
class Minimiser:
    """A global minimiser. weight_KR, feature_KR: rows w_k and h_k in coordinates of their own span; bias_K.

    value: f there. gap: no (W, H, b) of any width lies below ``value - gap`` (weak duality), up to rounding.
    """

    weight_KR: Tensor
    feature_KR: Tensor
    bias_K: Tensor
    value: float
    gap: float

    @property
    def rank(self) -> int:
        """Features of at least this dimension can reach it."""
        return self.weight_KR.shape[1]


def global_minimiser(problem: Problem) -> Minimiser:
    """In closed form where one is known; else by LBFGS on K x K factors. Either way ``gap`` certifies it.

    Cross-entropy, balanced: :func:`cross_entropy_logits`. MSE, balanced or without bias: :func:`mse_logits`. The rest,
    cross-entropy of unequal classes among them, has no closed form.
    """
    bias_K = torch.zeros(len(problem.count_K), dtype=torch.float64)
    if problem.loss == "mse" and (problem.balanced or not problem.bias):
        weighted_KK = mse_logits(problem)
        if problem.bias:
            bias_K = _mse_bias(problem, weighted_KK / problem.count_K.double().sqrt()[:, None])
    elif problem.balanced:
        weighted_KK = cross_entropy_logits(problem)
    else:
        weighted_KK, bias_K = _descend(problem)
    weight_KR, feature_KR = _factors(problem, weighted_KK)
    value = float(problem.objective(weight_KR, feature_KR, bias_K))
    return Minimiser(weight_KR, feature_KR, bias_K, value, duality_gap(problem, weight_KR, feature_KR, bias_K))


def cross_entropy_logits(problem: Problem) -> Tensor:
    """Balanced cross-entropy (Zhu et al. 2021, Theorem 3.1): A of logits ``s (I - 11'/K)``, a simplex ETF, b = 0.

    The scalar problem ``log(1 + (K-1) e^-s) + lambda sqrt(n) (K-1) s`` is stationary where ``e^s = K/kappa - (K-1)``,
    ``kappa = K lambda sqrt(n)``; from kappa = 1 on everything is zero.
    """
    K, root = len(problem.count_K), float(problem.count_K[0]) ** 0.5
    kappa = K * problem.decay * root
    scale = math.log(K / kappa - (K - 1)) if kappa < 1 else 0.0
    return root * scale * (torch.eye(K, dtype=torch.float64) - 1 / K)


def mse_logits(problem: Problem) -> Tensor:
    """MSE: A is ``diag(sqrt n_k)`` with its singular values lowered by ``lambda N`` and cut at zero, (K, K).

    Without bias the rows stay orthogonal, of unequal norms where the classes are unequal, and classes with
    ``n_k <= (lambda N)^2`` vanish: minority collapse (Dang et al. 2023, "Neural Collapse in Deep Linear Networks: From
    Balanced to Imbalanced Data", bias-free, one linear layer). With a bias and balanced classes a simplex ETF (Zhou et
    al. 2022, "On the Optimization Landscape of Neural Collapse under MSE Loss"; Tirer & Bruna 2022), and on the ones
    vector, which the bias serves at less cost, what is left after ``lambda N (1 + head_decay)/head_decay``.
    """
    root_K = problem.count_K.double().sqrt()
    K, threshold = len(root_K), problem.decay * float(problem.count_K.sum())
    eye = torch.eye(K, dtype=torch.float64)
    spread_K = (root_K - threshold).clamp(min=0)
    if not problem.bias:
        return eye * spread_K
    common = max(0.0, float(root_K[0]) - threshold * (1 + problem.head_decay) / problem.head_decay)
    return eye * spread_K + (common - spread_K) / K


def duality_gap(problem: Problem, weight_KR: Tensor, feature_KR: Tensor, bias_K: Tensor) -> float:
    """``f - d >= f - min f``, d the dual value of the residuals, scaled into the ball of operator norm lambda.

    For residual columns ``u_k = softmax(z_k) - e_k`` (MSE: ``z_k - e_k``) the dual is
    ``-sum_k n_k/N loss*(u_k) - ||sum_k n_k/N u_k||^2/(2 head_decay)`` where ``||u diag(sqrt n_k)/N||_op <= lambda``.
    """
    logits = feature_KR @ weight_KR.T + bias_K
    eye, share = torch.eye(len(logits), dtype=torch.float64), problem.share_K
    residual = (logits.softmax(dim=1) if problem.loss == "cross_entropy" else logits) - eye
    norm = torch.linalg.matrix_norm((share / problem.count_K.sum()).sqrt()[:, None] * residual, ord=2)
    residual = residual * (problem.decay / norm).clamp(max=1)
    if problem.loss == "cross_entropy":
        conjugate = torch.special.xlogy(residual + eye, residual + eye).sum(dim=1)
    else:
        conjugate = 0.5 * residual.square().sum(dim=1) + residual.diagonal()
    dual = -share @ conjugate
    if problem.bias:
        dual = dual - (share @ residual).square().sum() / (2 * problem.head_decay)
    return float(problem.objective(weight_KR, feature_KR, bias_K) - dual)


def _losses(loss: Loss, logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Of every sample, (N,)."""
    if loss == "cross_entropy":
        return F.cross_entropy(logits_NK, labels_N, reduction="none")
    return 0.5 * (logits_NK - F.one_hot(labels_N, logits_NK.shape[1])).square().sum(dim=1)


def _mse_bias(problem: Problem, logits_KK: Tensor) -> Tensor:
    """The optimal bias for given logits of one sample of every class, (K,)."""
    return (problem.share_K - problem.share_K @ logits_KK) / (1 + problem.head_decay)


def _factors(problem: Problem, weighted_KK: Tensor) -> tuple[Tensor, Tensor]:
    """W and H (K, R) of least decay with ``diag(sqrt n) H W' = A``; directions that rounding left are dropped."""
    left, singular, right = torch.linalg.svd(weighted_KK)
    # the scale of the labels: where the minimum is zero, all that is left is the rounding of a descent
    kept = singular > 1e-8 * singular[0].clamp(min=10 * problem.count_K.max().double().sqrt())
    root_R = singular[kept].sqrt()
    ratio = (problem.feature_decay / problem.head_decay) ** 0.25
    return right.T[:, kept] * root_R * ratio, left[:, kept] * root_R / ratio / problem.count_K.double().sqrt()[:, None]


def _descend(problem: Problem) -> tuple[Tensor, Tensor]:
    """A (K, K) and bias by LBFGS on factors, until a step no longer lowers f by what float64 resolves.

    From the centred labels, which are near the minimum but for their scale; no direction starts at zero, lest it stay.
    Slow only where decays are on the verge of a change of rank; what is then missing shows in the duality gap.
    """
    K = len(problem.count_K)
    root_K = problem.count_K.double().sqrt()[:, None]
    left, singular, right = torch.linalg.svd(root_K * (torch.eye(K, dtype=torch.float64) - problem.share_K))
    root_S = singular.clamp(min=1e-3 * singular[0]).sqrt()
    # sqrt(n) times the features, in units in which the decays of all variables weigh alike
    start = torch.stack((right.T * root_S, left * root_S, torch.zeros_like(left)))
    start[2, 0] = problem.share_K
    variables = start.requires_grad_()
    scale_K = root_K * (problem.feature_decay / problem.head_decay) ** 0.5

    def solution() -> tuple[Tensor, Tensor, Tensor]:
        weight, feature = variables[0], variables[1] / scale_K
        if not problem.bias:
            return weight, feature, torch.zeros(K, dtype=torch.float64)
        # eliminated where that can be done: it is far stiffer than the rest
        return weight, feature, _mse_bias(problem, feature @ weight.T) if problem.loss == "mse" else variables[2, 0]

    def closure() -> float:
        optimizer.zero_grad()
        value = problem.objective(*solution())
        value.backward()
        return float(value.detach())

    with torch.inference_mode(False), torch.enable_grad():
        optimizer = torch.optim.LBFGS(
            [variables],
            max_iter=3000,
            history_size=100,
            tolerance_grad=1e-14,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(closure)
    weight, feature, bias = (t.detach() for t in solution())
    return root_K * (feature @ weight.T), bias


def minimiser_errors(
    problem: Problem, minimiser: Minimiser, weight_KD: Tensor, bias_K: Tensor, features_ND: Tensor, labels_N: Tensor
) -> dict[str, float]:
    """How far trained (H, W, b) are from the minimiser; everything but the losses is 0 where they agree.

    ``loss`` and ``predicted_loss`` are f. Relative: ``loss_gap``; ``weight_norm_gap``, ``feature_norm_gap``, the
    largest difference of a class's norm over the largest predicted norm; ``logit_gap``, of the logits without bias in
    Frobenius norm; ``within``, the features' rms distance from their class mean over their predicted rms. Absolute:
    ``weight_cos_gap``, ``feature_cos_gap`` (means about the origin), the largest difference of a pairwise cosine;
    ``alignment_gap``, that of ``cos(w_k, h_k)``; ``bias_gap``. Cosines are of the classes predicted not to vanish;
    where all do, only losses and bias are given. ``certified`` is the predicted minimum's own relative duality gap.
    """
    weight, bias, features = weight_KD.double(), bias_K.double(), features_ND.double()
    count, mean = class_means(features, labels_N, len(weight))
    within = (features - mean[labels_N]).square().sum()
    data = _losses(problem.loss, features @ weight.T + bias, labels_N).mean()
    head = problem.head_decay * (weight.square().sum() + bias.square().sum())
    loss = float(data + 0.5 * (head + problem.feature_decay * features.square().sum()))
    errors = {
        "loss": loss,
        "predicted_loss": minimiser.value,
        "loss_gap": loss / minimiser.value - 1,
        "bias_gap": _worst(bias, minimiser.bias_K),
        "certified": minimiser.gap / minimiser.value,
    }
    if not minimiser.rank:
        return errors
    W, H = minimiser.weight_KR, minimiser.feature_KR
    w, h, W_norm, H_norm = (torch.linalg.vector_norm(rows, dim=1) for rows in (weight, mean, W, H))
    alive = W_norm > 1e-6 * W_norm.max()
    aligned = (F.cosine_similarity(a[alive], b[alive]) for a, b in ((weight, mean), (W, H)))
    return errors | {
        "weight_norm_gap": _worst(w, W_norm) / float(W_norm.max()),
        "feature_norm_gap": _worst(h, H_norm) / float(H_norm.max()),
        "weight_cos_gap": _worst(cosines(weight[alive]), cosines(W[alive])),
        "feature_cos_gap": _worst(cosines(mean[alive]), cosines(H[alive])),
        "alignment_gap": _worst(*aligned),
        "logit_gap": float((mean @ weight.T - H @ W.T).norm() / (H @ W.T).norm()),
        "within": float((within / (count.double() @ H_norm.square())).sqrt()),
    }


def _worst(reached: Tensor, predicted: Tensor) -> float:
    return float((reached - predicted).abs().max())
