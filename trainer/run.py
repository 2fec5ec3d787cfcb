"""One training's state and its steps: what `train.train` repeats epoch by epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainer.device import Place
from trainer.distill import Distillation
from trainer.ema import Ema
from trainer.errors import TrainerError
from trainer.hyp import Hyp
from trainer.loss import Loss
from trainer.optimizer import Schedule, accumulate
from trainer.saved import Progress, Saved

if TYPE_CHECKING:
    from trainer.sparsify import Sparsifier

_CLIP = 10.0  # norm of the gradients: published; one bad batch must not undo the rest


@dataclass
class Run:
    """The network and everything that changes with it. `sparsifier` holds the optimizer where there is a recipe."""

    network: nn.Module
    place: Place
    hyp: Hyp
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss
    distillation: Distillation | None
    sparsifier: Sparsifier | None
    progress: Progress
    ema: Ema
    scaler: torch.amp.GradScaler
    frozen: int = 0  # first layers that stay as they are
    wrapped: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.wrapped = self._wrap()

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], tell: Callable[[Tensor], None]) -> Tensor:
        """One epoch over batches of (pictures uint8, targets); returns the mean parts of the loss (3,)."""
        self._learn()
        epoch, waiting = self.progress.epoch, 0
        total = torch.zeros(3, device=self.place.device)
        count = 0
        self.optimizer.zero_grad()
        for number, (pictures, targets) in enumerate(batches):
            together = self._set_rates(epoch, number)
            parts = self._backward(pictures, targets, epoch)
            total += parts
            count = number + 1
            waiting += 1
            if waiting >= together:
                self._step(epoch, number)
                waiting = 0
            tell(total / count)
        if waiting:
            self._step(epoch, count - 1)
        self.progress.epoch += 1
        return (total / max(count, 1)).cpu()

    def saved(self, facts: dict[str, Any], *, whole: bool) -> Saved:
        """The state as data; not `whole`: only what using the network needs."""
        quantised = {"recipe_epoch": float(self.progress.epoch)} if self.sparsifier else {}
        return Saved(
            ema=copy.deepcopy(self.ema.network.state_dict()),
            network=self.network.state_dict() if whole else None,
            optimizer=self.optimizer.state_dict() if whole else None,
            scaler=self.scaler.state_dict() if whole else {},
            progress=self.progress,
            facts={**facts, **quantised},
        )

    def rates(self) -> list[float]:
        """Learning rate of each group, in the order of results.csv: weights, normalisations, biases."""
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return rates[1:3] + rates[:1]

    def _set_rates(self, epoch: int, batch: int) -> int:
        if self.sparsifier is not None and self.sparsifier.sets_lr:
            return accumulate(self.hyp, self.schedule.batch_size)
        return self.schedule.set_rates(self.optimizer, epoch, batch)

    def _backward(self, pictures: Tensor, targets: Tensor, epoch: int) -> Tensor:
        device = self.place.device
        shares = pictures.to(device, non_blocking=True).float().div_(255)
        shares = shares.to(memory_format=torch.channels_last)
        # Fake-quantised layers round for themselves: in half precision they would round twice.
        plain = self.place.dtype is torch.float32 or self._quantised(epoch)
        with self._watching() as maps, nullcontext() if plain else torch.autocast(device.type, dtype=self.place.dtype):
            raw = self.wrapped(shares)
        loss, parts = self.loss(raw, targets.to(device))
        if self.distillation is not None:
            # Not in the parts: those are of the truth, as the validation's are.
            loss = loss + self.distillation(shares, raw, maps)[0]
        if not math.isfinite(float(loss.detach())):
            raise TrainerError(
                f"epoch {epoch}: the loss is {float(loss.detach())}; the last good epoch is in weights/last.pt. "
                "Expected a finite number: lower lr0 in --hyp, or look at the labels with `sparsecam data check`"
            )
        # Gradients are averaged over the processes; the published rates are for their sum.
        self.scaler.scale(loss * self.place.world).backward()  # type: ignore[no-untyped-call]  # as torch ships it
        return parts

    def _watching(self) -> AbstractContextManager[Mapping[str, Tensor]]:
        return nullcontext({}) if self.distillation is None else self.distillation.watching(self.network)

    def _step(self, epoch: int, batch: int) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        was = self._quantised(epoch)
        if self.sparsifier is not None:
            if self.frozen and not was:
                self.network.train()  # quantisation joins only layers that are all in training
            # By the epoch and not by steps: in the warm-up there are more of them.
            self.sparsifier.step(self.scaler, epoch=epoch + batch / self.schedule.batches)
            if self.frozen and not was:
                self._learn()
        else:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self._quantised(epoch) and not was:
            # Other modules now: averages and the wrapper of the old ones hold no longer.
            self.ema = Ema(self.network, self.ema.steps)
            self.wrapped = self._wrap()
        self.ema.update(self.network)
        if self.sparsifier is not None:
            self.sparsifier.hold(self.ema.network)
        self.progress.ema_steps = self.ema.steps

    def _learn(self) -> None:
        """Training mode, but for the statistics of frozen layers; the ranges of quantised ones are learnt there too."""
        self.network.train()
        for layer in list(self.network.get_submodule("model").children())[: self.frozen]:
            for module in layer.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _quantised(self, epoch: int) -> bool:
        return self.sparsifier is not None and self.sparsifier.quantised(epoch)

    def _wrap(self) -> nn.Module:
        if self.place.world == 1:
            return self.network
        devices = [self.place.device] if self.place.device.type == "cuda" else None
        return DistributedDataParallel(self.network, device_ids=devices)


def sparsity_of(network: nn.Module) -> float:
    """Share of zeros among the weights of the convolutions, those of the head included."""
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / max(sum(weight.numel() for weight in weights), 1)
