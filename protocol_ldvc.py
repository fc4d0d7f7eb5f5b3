"""The protocol audit: what really reached the loss, counted where it passes, not read from the recipe."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vocabularies import Vocabulary


__all__ = ["ProtocolAudit"]


class ProtocolAudit:
    """Counts the pixels that a model's loss gets, class by class, with the original ids beside its targets.

    `watch` puts a hook on the model: each training call's `labels` are counted as they enter `forward`, and the class
    prompts of the same call tell which name each target id stands for. The trainer announces the original label map
    with `expect`. A pixel is a *positive* of the class it was labelled with if the loss saw any class id there, and a
    *negative* if the loss saw the ignore label, which teaches "none of the seen classes".

    Args:
        vocabulary: Classes and unseen names.
        setting: "inductive" or "fully_supervised".
        name_of_prompt: Token ids of a class prompt (without padding) -> class name.
    """

    def __init__(self, vocabulary: Vocabulary, setting: str, name_of_prompt: dict[tuple[int, ...], str]):
        self.vocabulary = vocabulary
        self.setting = setting
        self.name_of_prompt = name_of_prompt
        num_classes = len(vocabulary.class_names)
        # rows: original id, the last one unlabelled; columns: class that the loss was told, the last one none
        self.counts = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
        self.num_draws = 0
        self.given_names: list[str] | None = None
        self._given_rows: list[list[int]] | None = None
        self._source_labels: Tensor | None = None

    def watch(self, model: nn.Module) -> None:
        """Count every training call of `model` from now on."""
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def expect(self, source_labels: Tensor) -> None:
        """Announce the original class ids, (batch_size, height, width), of the next training call."""
        self._source_labels = source_labels

    def _count(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook of `watch`.

        Raises:
            RuntimeError: If the original labels were not announced, or the classes are not those of calls before.
        """
        labels = kwargs.get("labels")
        if labels is None or not model.training:
            return
        if self._source_labels is None or self._source_labels.shape != labels.shape:
            raise RuntimeError("a training call came without its original labels; call `expect` before the model.")
        rows = kwargs["input_ids"].tolist()
        if rows != self._given_rows:  # the names are read once, not at every step
            names = [self._name(row) for row in rows]
            if self.given_names not in (None, names):
                raise RuntimeError(f"the run's classes changed from {self.given_names} to {names}; start a new run.")
            self.given_names, self._given_rows = names, rows
        num_classes = len(self.vocabulary.class_names)
        # target id -> class id, by the names that the model was given; every other label is "none"
        class_of_target = torch.full((256,), num_classes, dtype=torch.int64)
        for target, name in enumerate(self.given_names):
            class_of_target[target] = self.vocabulary.class_names.index(name)
        told = class_of_target[labels.detach().cpu().flatten()]
        source = self._source_labels.cpu().flatten().clamp(max=num_classes)
        pairs = torch.bincount(source * (num_classes + 1) + told, minlength=(num_classes + 1) ** 2)
        self.counts += pairs.view_as(self.counts)
        self.num_draws += len(labels)
        self._source_labels = None

    def _name(self, row: list[int]) -> str:
        """The class whose prompt this row of token ids begins with, padding aside.

        Raises:
            RuntimeError: If there is none.
        """
        for tokens, name in self.name_of_prompt.items():
            if tuple(row[: len(tokens)]) == tokens and set(row[len(tokens) :]) <= {tokens[-1]}:
                return name
        raise RuntimeError(f"the model got a prompt that is no class of the vocabulary: token ids {row}.")

    def bring_together(self, accelerator: Accelerator) -> None:
        """Move the counts of all processes to the first, which alone writes training states; all must call this."""
        counts = accelerator.reduce(self.counts.to(accelerator.device)).cpu()
        draws = accelerator.reduce(torch.tensor(self.num_draws, device=accelerator.device))
        self.counts, self.num_draws = counts, int(draws)
        self.keep_on_first(accelerator)

    def keep_on_first(self, accelerator: Accelerator) -> None:
        """Forget the counts on every process but the first, so that each pixel is held once."""
        if not accelerator.is_main_process:
            self.counts, self.num_draws = torch.zeros_like(self.counts), 0

    def state_dict(self) -> dict[str, Any]:
        """Counts so far, to be saved with a training state after `bring_together`."""
        return {"counts": self.counts, "num_draws": self.num_draws, "given_names": self.given_names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counts of a training state; call `keep_on_first` afterwards."""
        self.counts, self.num_draws = state["counts"].clone(), state["num_draws"]
        self.given_names = state["given_names"]

    def report(self, counts: np.ndarray, num_draws: int) -> dict[str, Any]:
        """Build `protocol.json`'s account.

        Args:
            counts: `counts`, summed over processes.
            num_draws: `num_draws`, summed over processes.

        Returns:
            Per class the pixels that were positives of it, positives of another class, and negatives; whether unseen
            names or masks reached the loss; and whether that keeps the setting.
        """
        names, unseen = self.vocabulary.class_names, set(self.vocabulary.unseen_names)
        classes = []
        for class_id, name in enumerate(names):
            row = counts[class_id]
            positive = int(row[class_id])
            classes.append(
                {
                    "id": class_id,
                    "name": name,
                    "is_unseen": name in unseen,
                    "positive_pixels": positive,
                    "pixels_told_as_another_class": int(row[:-1].sum()) - positive,
                    "negative_pixels": int(row[-1]),
                }
            )
        given = self.given_names or []
        unseen_ids = list(self.vocabulary.unseen_class_ids)
        mask_pixels = int(counts[unseen_ids, :-1].sum() + counts[:, unseen_ids].sum())
        unseen_names = [name for name in given if name in unseen]
        return {
            "setting": self.setting,
            "classes_given_to_the_loss": given,
            "seen_classes": [name for name in names if name not in unseen],
            "unseen_classes": [name for name in names if name in unseen],
            "image_draws": num_draws,
            "classes": classes,
            "unlabelled_pixels": int(counts[-1, -1]),
            "unlabelled_pixels_told_as_a_class": int(counts[-1, :-1].sum()),
            "unseen_mask_pixels_in_the_loss": mask_pixels,
            "unseen_names_in_the_loss": unseen_names,
            "keeps_setting": self.setting != "inductive" or (mask_pixels == 0 and not unseen_names),
        }
