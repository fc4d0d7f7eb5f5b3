"""The protocol audit: what really reached the loss, counted where it passes, not read from the recipe.

`ProtocolAudit` counts while a model trains and writes protocol.json's account; `protocol_mismatches` holds that
account against the protocol a checkpoint is to be scored under.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import cached_file

from ldvc.data.pseudo_labels import WITHHELD
from ldvc.data.vocabularies import Vocabulary, letters
from ldvc.data.worlds import WORLDS
from ldvc.model.weights_ldvc import CLIP_PREFIX, weights_fingerprint


__all__ = [
    "PROTOCOL_FILE",
    "SCORED_ON_TRAINING_IMAGES",
    "WEIGHTS_FIELD",
    "ProtocolAudit",
    "audit_mismatches",
    "checkpoint_fingerprints",
    "describe_audit",
    "is_of_training_split",
    "names_given_to_the_loss",
    "names_trained_with_masks",
    "protocol_mismatches",
    "read_protocol",
    "shared_names",
    "unaudited_parts",
    "uncovered_weights",
]

PROTOCOL_FILE = "protocol.json"
SCORED_ON_TRAINING_IMAGES = "these label maps are those of the training split, or a part of it"
# What protocol.json must say for a checkpoint to be judged by it.
NEEDED_FIELDS = ("setting", "classes", "classes_given_to_the_loss", "unseen_classes", "keeps_setting")
# Field of protocol.json with the SHA-256 of a part of the checkpoint -> that part. The first one alone was written by
# older versions; results name it.
WEIGHTS_FIELD = "weights_sha256"
FINGERPRINTS = {
    WEIGHTS_FIELD: "LDVC's own weights",
    "text_prompts_sha256": "text prompts",
    "clip_sha256": "CLIP's weights",
}
# What the pixels that transductive training labels itself were known to be, from the label maps.
LOCATION_HINTS = {
    "unseen_pixels": "location only: the loss knew which pixels belong to some unseen class; which class, the model "
    "guessed",
    "all_unlabelled": "that no seen class is there: pixels of unseen classes and unlabelled ones were not told apart",
}


class ProtocolAudit:
    """Counts the pixels that a loss gets, class by class, with the original ids beside its targets.

    `watch` puts itself before the loss: each call's labels are counted as they enter, and the class prompts of the
    training call before it tell which name each target id stands for. The trainer announces with `expect` the original
    label map and the labels as they left the data side. A pixel is a *positive* of the class it was labelled with if
    the loss saw any class id there. Where it saw the ignore label, the pixel is a *negative*, which teaches "none of
    these classes", unless the loss was told to leave such pixels out: then it is *ignored*. Where the label was
    withheld, what the loss saw is a *pseudo label*.

    Args:
        vocabulary: Classes and unseen names.
        setting: "inductive", "transductive" or "fully_supervised".
        name_of_prompt: Token ids of a class prompt (without padding) -> class name.
        pseudo_region: See `withhold_labels`; reported for transductive runs.
        pseudo_threshold: See `pseudo_labels`; reported for transductive runs.
        start: Where the weights came from, if not from CLIP alone, see `describe_start`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        setting: str,
        name_of_prompt: dict[tuple[int, ...], str],
        pseudo_region: str | None = None,
        pseudo_threshold: float | None = None,
        start: Mapping[str, Any] | None = None,
    ):
        self.vocabulary = vocabulary
        self.setting = setting
        self.name_of_prompt = name_of_prompt
        self.pseudo_region, self.pseudo_threshold = pseudo_region, pseudo_threshold
        self.start = start
        num_classes = len(vocabulary.class_names)
        # (label given, label withheld) x original id, the last one unlabelled x class that the loss was told, the
        # last one none
        self.counts = torch.zeros(2, num_classes + 1, num_classes + 1, dtype=torch.int64)
        self.num_draws = 0
        self.unlabeled_pixels = "negative"
        self.given_names: list[str] | None = None
        self._given_rows: list[list[int]] | None = None
        self._expected: tuple[Tensor, Tensor] | None = None

    def watch(self, model: nn.Module, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Read the class prompts of every training call of `model`; returns `loss`, which counts labels from now on.

        Args:
            model: Its class names come as `input_ids`.
            loss: Called as `loss(logits, labels, **options)`.
        """
        model.register_forward_pre_hook(self._read_names, with_kwargs=True)

        def counted_loss(logits: Tensor, labels: Tensor, **options: Any) -> Any:
            self._count(labels.detach())
            self.unlabeled_pixels = options.get("unlabeled_pixels", "negative")
            return loss(logits, labels, **options)

        return counted_loss

    def expect(self, source_labels: Tensor, given_labels: Tensor) -> None:
        """Announce the next labels of the loss.

        Args:
            source_labels: (batch_size, height, width) original class ids.
            given_labels: (batch_size, height, width) as they left the data side, with `WITHHELD` where it hid them.
        """
        self._expected = (source_labels, given_labels)

    def _read_names(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Hook of `watch`.

        Raises:
            RuntimeError: If the classes are not those of calls before.
        """
        if not model.training:
            return
        rows = kwargs["input_ids"].tolist()
        if rows == self._given_rows:  # the names are read once, not at every step
            return
        names = [self._name(row) for row in rows]
        if self.given_names not in (None, names):
            raise RuntimeError(f"the run's classes changed from {self.given_names} to {names}; start a new run.")
        self.given_names, self._given_rows = names, rows

    def _count(self, labels: Tensor) -> None:
        """Count the labels of one call of the loss.

        Raises:
            RuntimeError: If they were not announced, or differ from the announced ones where nothing was withheld.
        """
        if self.given_names is None or self._expected is None or self._expected[0].shape != labels.shape:
            raise RuntimeError("labels reached the loss unannounced; call the model and `expect` before the loss.")
        source, given = (tensor.to(labels.device) for tensor in self._expected)
        is_withheld = given == WITHHELD
        if ((labels != given) & ~is_withheld).any():
            raise RuntimeError("labels were changed on their way to the loss where none was withheld.")
        num_classes = len(self.vocabulary.class_names)
        # target id -> class id, by the names that the model was given; every other label is "none"
        class_of_target = torch.full((256,), num_classes, dtype=torch.int64)
        for target, name in enumerate(self.given_names):
            class_of_target[target] = self.vocabulary.class_names.index(name)
        told = class_of_target.to(labels.device)[labels]
        source = source.clamp(max=num_classes)
        cells = (is_withheld.long() * (num_classes + 1) + source) * (num_classes + 1) + told
        self.counts += torch.bincount(cells.flatten(), minlength=self.counts.numel()).cpu().view_as(self.counts)
        self.num_draws += len(labels)
        self._expected = None

    def _name(self, row: list[int]) -> str:
        """The class whose prompt this row of token ids begins with, padding aside.

        Raises:
            RuntimeError: If there is none.
        """
        for tokens, name in self.name_of_prompt.items():
            if tuple(row[: len(tokens)]) == tokens:  # the last one ends the prompt: what follows is padding
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
        fields = ("counts", "num_draws", "given_names", "unlabeled_pixels")
        return {field: getattr(self, field) for field in fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counts of a training state; call `keep_on_first` afterwards."""
        self.counts, self.num_draws = state["counts"].clone(), state["num_draws"]
        self.given_names, self.unlabeled_pixels = state["given_names"], state["unlabeled_pixels"]

    def report(self, counts: np.ndarray, num_draws: int) -> dict[str, Any]:
        """Build `protocol.json`'s account.

        Args:
            counts: `counts`, summed over processes.
            num_draws: `num_draws`, summed over processes.

        Returns:
            Per class the pixels that were positives of it, positives of another class, negatives, and ignored;
            whether unseen names or masks reached the loss; what was guessed; and whether that keeps the setting.
        """
        names, unseen = self.vocabulary.class_names, set(self.vocabulary.unseen_names)
        given, guessed = counts
        is_unseen = np.array([name in unseen for name in names] + [False])
        # a label map told the loss an unseen class, or told it a class where an unseen one is
        is_leak = is_unseen[None, :] | (is_unseen[:, None] & (np.arange(len(names) + 1) < len(names)))
        mask_pixels = int(given[is_leak].sum())
        unseen_names = [name for name in self.given_names or [] if name in unseen]
        # guesses are unseen classes or none, and never stand where a seen class was labelled
        wrong_guesses = int(guessed[:, ~is_unseen][:, :-1].sum() + guessed[~is_unseen][:-1].sum())
        keeps_setting = {
            "inductive": mask_pixels == 0 and not unseen_names and not guessed.any(),
            "transductive": mask_pixels == 0 and wrong_guesses == 0,
            "fully_supervised": not guessed.any(),
        }[self.setting]
        report = {
            "setting": self.setting,
            "classes_given_to_the_loss": self.given_names or [],
            "seen_classes": [name for name in names if name not in unseen],
            "unseen_classes": [name for name in names if name in unseen],
            "image_draws": num_draws,
            "unlabelled_pixels_are": "negatives" if self.unlabeled_pixels == "negative" else "ignored",
            "classes": [self._report_class(class_id, given, guessed) for class_id in range(len(names))],
            "unlabelled_pixels": int(given[-1, -1]),
            "unlabelled_pixels_told_as_a_class": int(given[-1, :-1].sum()),
            "unseen_mask_pixels_in_the_loss": mask_pixels,
            "unseen_names_in_the_loss": unseen_names,
            "keeps_setting": bool(keeps_setting),
        }
        if self.setting == "transductive":
            report["pseudo_labels"] = {
                "region": self.pseudo_region,
                "threshold": self.pseudo_threshold,
                "label_maps_told": LOCATION_HINTS[self.pseudo_region],
                "withheld_pixels": int(guessed.sum()),
                "left_unlabelled_pixels": int(guessed[:, -1].sum()),
                "right_pixels": int(np.trace(guessed[:-1, :-1])),  # known to the audit alone
            }
        return report | ({"start": dict(self.start)} if self.start else {})

    def _report_class(self, class_id: int, given: np.ndarray, guessed: np.ndarray) -> dict[str, Any]:
        """One class of `report`."""
        name, positive = self.vocabulary.class_names[class_id], int(given[class_id, class_id])
        is_negative, told_none = self.unlabeled_pixels == "negative", int(given[class_id, -1])
        row = {
            "id": class_id,
            "name": name,
            "is_unseen": name in self.vocabulary.unseen_names,
            "positive_pixels": positive,
            "pixels_told_as_another_class": int(given[class_id, :-1].sum()) - positive,
            "negative_pixels": told_none if is_negative else 0,
            "ignored_pixels": 0 if is_negative else told_none,
        }
        if self.setting == "transductive":
            row["withheld_pixels"] = int(guessed[class_id].sum())
            row["pseudo_label_pixels"] = int(guessed[:, class_id].sum())
        return row


# ---- judging a checkpoint by its audit


def read_protocol(checkpoint: str) -> dict[str, Any] | None:
    """Read the protocol.json beside a checkpoint's weights.

    Args:
        checkpoint: Folder or Hub id.

    Returns:
        Its content; `None` if the checkpoint has none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = cached_file(
        checkpoint,
        PROTOCOL_FILE,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        with open(path) as file:
            protocol = json.load(file)
        missing = [field for field in NEEDED_FIELDS if field not in protocol]
        names_trained_with_masks(protocol)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); copy it again from the run, or remove it.") from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; copy it again from the run, or remove it.")
    return protocol


def names_trained_with_masks(protocol: Mapping[str, Any]) -> list[str]:
    """Names whose label maps trained the weights, in this run or in the one that it started from."""
    here = [row["name"] for row in protocol["classes"] if row["positive_pixels"]]
    before = protocol.get("start", {}).get("names_trained_with_masks") or []
    return here + [name for name in before if name not in here]


def names_given_to_the_loss(protocol: Mapping[str, Any]) -> list[str]:
    """Names that training knew, with or without masks, in this run or in the one that it started from."""
    here, start = list(protocol["classes_given_to_the_loss"]), protocol.get("start", {})
    before = start.get("names_given_to_the_loss") or start.get("names_trained_with_masks") or []
    return here + [name for name in before if name not in here]


def checkpoint_fingerprints(model: nn.Module) -> dict[str, str]:
    """SHA-256 of all weights of a checkpoint, in the parts of `FINGERPRINTS`.

    A checkpoint whose vocabulary was baked in no longer has its text prompts and text tower: it differs in both.

    Args:
        model: [`LDVCForSemanticSegmentation`], whole.
    """
    own = {name: weight for name, weight in model.named_parameters() if not name.startswith(CLIP_PREFIX)}
    prompts = {name: weight for name, weight in own.items() if name.startswith("text_prompts")}
    rest = {name: weight for name, weight in own.items() if name not in prompts}
    parts = (rest, prompts, model.clip.state_dict())
    return {field: weights_fingerprint(part) for field, part in zip(FINGERPRINTS, parts, strict=True)}


def uncovered_weights(protocol: Mapping[str, Any]) -> list[str]:
    """Parts of the checkpoint that an audit of an older version has no fingerprint of."""
    return [part for field, part in FINGERPRINTS.items() if field not in protocol]


def unaudited_parts(protocol: Mapping[str, Any]) -> list[str]:
    """Say what the account of a checkpoint leaves open, from CLIP on; empty when all runs and weights are in it."""
    findings = []
    if missing := uncovered_weights(protocol):
        findings.append(
            f"its audit was written by an older version and does not cover {' and '.join(missing)}, which may have "
            "been replaced since; only a new training writes a whole one"
        )
    start = protocol.get("start", {})
    if not start.get("is_audited", True):
        findings.append(f"it started from {start.get('checkpoint')!r}, of whose training no whole audit is known")
    return findings


def describe_audit(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of an audit that nothing contradicts: "matches", or "unaudited" with what it leaves open."""
    findings = unaudited_parts(protocol)
    return {"status": "unaudited" if findings else "matches", "findings": findings}


def is_of_training_split(
    protocol: Mapping[str, Any], dataset: str, split: str, fingerprint: str, edition: int = 0
) -> bool:
    """Whether pictures that are scored trained the checkpoint.

    Args:
        protocol: Its audit.
        dataset: What is scored.
        split: Its split.
        fingerprint: `dataset_fingerprint` of the pictures that are scored; a part of the training split has another
            than the whole, and is known by its name.
        edition: Seed of the pages that are scored, in a drawn world, where each seed has its own.
    """
    if protocol.get("dataset_fingerprint") == fingerprint:
        return True
    if dataset in WORLDS and protocol.get("seed") != edition:
        return False
    return (protocol.get("dataset"), protocol.get("train_split")) == (dataset, split)


def shared_names(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of `names` that occur in `others`; spaces, hyphens and case aside ("pottedplant", "potted plant")."""
    known = {letters(name) for name in others}
    return [name for name in names if letters(name) in known]


def protocol_mismatches(
    protocol: Mapping[str, Any],
    setting: str,
    vocabulary: Vocabulary,
    seen_classes: Sequence[str] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> list[str]:
    """Say why a checkpoint may not be scored under a protocol.

    Args:
        protocol: What its training really was, see `read_protocol`.
        setting: "inductive", "transductive", "fully_supervised" or "cross_dataset".
        vocabulary: Classes and split that it is to be scored on.
        seen_classes: The checkpoint's own list of names trained with masks, if it has one.
        fingerprints: The checkpoint's `checkpoint_fingerprints`, if known; an audit is asked for those that it has.

    Returns:
        One sentence per mismatch; empty when audit and protocol agree.
    """
    findings = audit_mismatches(protocol, seen_classes, fingerprints)
    if setting == "cross_dataset":
        return findings + _cross_dataset_mismatches(protocol, vocabulary)
    if protocol["setting"] != setting:
        findings.append(f"it was trained {protocol['setting']}, not {setting}")
    trained_on = [row["name"] for row in protocol["classes"]]
    if len(trained_on) != len(vocabulary.class_names):
        findings.append(
            f"it was trained on {len(trained_on)} classes, {vocabulary.name!r} has {len(vocabulary.class_names)}"
        )
    elif trained_on != list(vocabulary.class_names):
        first = next(i for i, name in enumerate(trained_on) if name != vocabulary.class_names[i])
        findings.append(
            f"class {first} was {trained_on[first]!r} in training and is {vocabulary.class_names[first]!r} in "
            f"{vocabulary.name!r}"
        )
    if setting == "fully_supervised":  # all masks trained; the split only sorts the scores
        return findings
    if set(protocol["unseen_classes"]) != set(vocabulary.unseen_names):
        findings.append(
            f"it was trained without masks of {sorted(protocol['unseen_classes'])}, the split of {vocabulary.name!r} "
            f"holds out {sorted(vocabulary.unseen_names)}"
        )
    if saw := shared_names(vocabulary.unseen_names, names_trained_with_masks(protocol)):
        findings.append(f"masks of the unseen classes {saw} trained it")
    elif setting == "inductive" and (knew := shared_names(vocabulary.unseen_names, names_given_to_the_loss(protocol))):
        findings.append(f"the loss knew the names of the unseen classes {knew}, as only transductive training may")
    return findings


def _cross_dataset_mismatches(protocol: Mapping[str, Any], vocabulary: Vocabulary) -> list[str]:
    """Say why scores would not be those of a model that saw the seen classes of another data set."""
    findings = []
    if [row["name"] for row in protocol["classes"]] == list(vocabulary.class_names):
        findings.append(f"it was trained on the classes of {vocabulary.name!r}, which is no other data set then")
    if protocol["setting"] == "fully_supervised":
        findings.append("masks of all its classes trained it, where only those of the seen ones may")
    return findings


def audit_mismatches(
    protocol: Mapping[str, Any],
    seen_classes: Sequence[str] | None,
    fingerprints: Mapping[str, str] | None,
) -> list[str]:
    """Say why an audit may not be believed of this checkpoint, whatever it is scored under or goes on to train.

    Args:
        protocol: See `read_protocol`.
        seen_classes: The checkpoint's own list of names trained with masks, if it has one.
        fingerprints: Its `checkpoint_fingerprints`, if known.

    Returns:
        One sentence per mismatch.
    """
    findings = []
    if not protocol["keeps_setting"]:
        findings.append(f"its own audit says that the run broke the {protocol['setting']} setting")
    held_out = protocol["unseen_classes"] if protocol["setting"] != "fully_supervised" else []
    with_masks = {row["name"] for row in protocol["classes"]} - set(held_out)
    if seen_classes is not None and set(seen_classes) != with_masks:
        findings.append("its configuration lists other seen classes than the audit, which is of another checkpoint")
    other = [
        part
        for field, part in FINGERPRINTS.items()
        if field in protocol and fingerprints is not None and protocol[field] != fingerprints[field]
    ]
    if other:
        findings.append(
            f"its weights are not those that the audit was written for ({', '.join(other)} differ): replaced or "
            "converted since"
        )
    return findings
