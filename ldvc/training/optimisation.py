"""One optimiser step: what is trained, at which rate, and how a batch becomes a gradient."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers.utils import logging

from ldvc.data.pseudo_labels import pseudo_labels
from ldvc.model.loss_ldvc import count_present
from ldvc.scoring.protocol import ProtocolAudit
from ldvc.training.recipe import Recipe


__all__ = ["Step", "build_optimizer", "learning_rate_at"]

logger = logging.get_logger("ldvc.train")


def build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over LDVC's own weights; text prompts have their own decay."""
    groups: dict[str, list[nn.Parameter]] = {"text_prompts": [], "rest": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["text_prompts" if name.startswith("text_prompts") else "rest"].append(parameter)
    for name, parameters in groups.items():
        logger.info("%s: %d trainable parameters", name, sum(parameter.numel() for parameter in parameters))
    return torch.optim.AdamW(
        [
            {"params": groups["rest"], "weight_decay": recipe.weight_decay},
            {"params": groups["text_prompts"], "weight_decay": recipe.text_prompt_weight_decay},
        ],
        lr=recipe.learning_rate,
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Polynomial decay to `min_learning_rate`, with a linear warm-up; step counts from 0. Source: mmcv, as ZegCLIP."""
    decay = (1 - step / (recipe.schedule_steps or recipe.max_steps)) ** recipe.poly_power
    rate = (recipe.learning_rate - recipe.min_learning_rate) * decay + recipe.min_learning_rate
    if step >= recipe.warmup_steps:
        return rate
    return rate * (1 - (1 - step / recipe.warmup_steps) * (1 - recipe.warmup_start))


@dataclass
class Step:
    """One optimiser step over all accumulated batches and processes.

    The loss divides by the number of masks of the *whole* step, which is not known before the last batch: pseudo
    labels come from the forward passes. So batches are divided by their number of images, and the gradient, which is
    linear, is corrected once at the end. Accumulating is then the same step in parts.

    Attributes:
        accelerator: The run's.
        model: As prepared by the accelerator; called once per batch, the text tower runs once for all its images.
        optimizer: As prepared by the accelerator.
        class_inputs: Prompts of the classes that the loss knows.
        loss: `segmentation_loss`, watched by the audit.
        audit: Gets the original labels, which nothing else sees.
        recipe: Accumulation, clipping and pseudo labels.
        options: See `loss_ldvc.loss_options`.
        unseen_class_ids: Classes to guess; none but in transductive runs.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    class_inputs: dict[str, Tensor]
    loss: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    audit: ProtocolAudit
    recipe: Recipe
    options: dict[str, Any]
    unseen_class_ids: tuple[int, ...] = ()

    def __call__(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Take the step.

        Args:
            batches: See `TrainingCollator`; `gradient_accumulation_steps` of them are drawn.

        Returns:
            Detached `loss`, `focal` and `dice` of this process; their mean over processes is the step's.
        """
        parts = self.recipe.gradient_accumulation_steps
        sums: dict[str, Tensor] = {}
        num_masks = num_images = 0
        for _ in range(parts):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                terms, labels = self._forward(batch)
                self.accelerator.backward(terms["loss"])
                num_images += len(labels)
                num_masks = num_masks + count_present(labels, len(self.audit.given_names))
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach() / parts
                if self.accelerator.sync_gradients:
                    masks_of_step = max(self.accelerator.reduce(num_masks, "sum").item(), 1.0)
                    # each process's part of them, as in `count_masks`, since gradients are averaged
                    factor = num_images / (masks_of_step / self.accelerator.num_processes)
                    self._finish_gradient(factor)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return {name: value * factor for name, value in sums.items()}

    def _forward(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """One forward pass: labels guessed where they are withheld, and the loss per image."""
        given = batch["labels"]
        logits = self.model(pixel_values=batch["pixel_values"], **self.class_inputs).logits
        labels = given
        if self.unseen_class_ids:
            labels = pseudo_labels(logits, given, self.unseen_class_ids, self.recipe.pseudo_threshold)
        self.audit.expect(batch["source_labels"], given)
        loss, terms = self.loss(logits, labels, num_masks=float(len(labels)), **self.options)
        return {"loss": loss, **terms}, labels

    def _finish_gradient(self, factor: float) -> None:
        """Divide the summed gradient by the number of masks, and clip it if asked."""
        # a sharded optimiser state only loads if every weight has one, idle weights of the class-query decoder too
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
            elif is_sharded and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        if self.recipe.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
