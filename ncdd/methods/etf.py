"""`method=etf`: train the features only, towards a frame that is not learned (Zhu et al. 2021, section 4.3)."""

from torch import Tensor, nn
from torch.nn import functional as F

from ncdd.methods.classify import Classify, Loss
from ncdd.methods.optim import Optimizer, Scheduler
from ncdd.models.guided import NearestETF


class FixedETF(Classify):
    """Standard training under a head whose weight is not learned, with the features optionally on the unit sphere.

    A head that follows the features (`NearestETF`) is moved by each batch before its loss is taken.

    normalize_features: the head, the loss and every metric see `h / ||h||` (Yang et al. 2022), so that logits are
        `scale * cosine + bias`; feature_decay must then be 0, as the norm of a unit vector has no gradient.
    Raises ValueError when the head's weight is trainable.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        head: nn.Linear,
        loss: Loss,
        optimizer: Optimizer,
        scheduler: Scheduler,
        normalize_features: bool,
        feature_decay: float,
        body_decay: float | None,
        norm_decay: float | None,
        head_decay: float | None,
    ) -> None:
        super().__init__(
            model=model,
            head=head,
            loss=loss,
            optimizer=optimizer,
            scheduler=scheduler,
            feature_decay=feature_decay,
            body_decay=body_decay,
            norm_decay=norm_decay,
            head_decay=head_decay,
        )
        if self.head.weight.requires_grad:
            raise ValueError(
                f"method=etf with a trainable head ({type(self.head).__name__}): choose head=etf, guided or "
                "orthogonal, or method=classify"
            )
        if normalize_features and self.feature_decay:
            raise ValueError(
                f"feature_decay={self.feature_decay} has no gradient with normalize_features=true: set one of them off"
            )
        self.normalize_features = normalize_features

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        return F.normalize(features, dim=1) if self.normalize_features else features

    def training_loss(self, features: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.head, NearestETF):
            self.head.follow(features.detach(), targets)
        return super().training_loss(features, targets)
