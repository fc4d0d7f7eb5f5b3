"""Where the weights of a run come from: a CLIP, an LDVC checkpoint, or the inductive half of a transductive run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ldvc.data.vocabularies import Vocabulary
from ldvc.model.compat_ldvc import enable_checkpointing
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.weights_ldvc import ADAPTER_FIELDS
from ldvc.scoring.evaluate import load_checkpoint, stored_config
from ldvc.scoring.protocol import (
    audit_mismatches,
    checkpoint_fingerprints,
    names_given_to_the_loss,
    names_trained_with_masks,
    read_protocol,
    shared_names,
    unaudited_parts,
)
from ldvc.training.recipe import Recipe, RecipeError, model_fields
from ldvc.training.state import own_half
from picturebook.clip_folder import check_clip_folder


__all__ = ["build_model", "check_start", "describe_start", "inductive_half"]

logger = logging.get_logger("ldvc.train")


def build_model(recipe: Recipe) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Build LDVC on the recipe's CLIP, or load the checkpoint that it starts from; and the processor.

    Raises:
        RecipeError: If a crop is smaller than a patch, or the recipe describes another model than the checkpoint.
        ValueError: If the CLIP is none, or is not the one that its fingerprint names.
    """
    model, processor = _load_start(recipe) if recipe.start_from else _build_on_clip(recipe)
    if recipe.crop_size < model.config.vision_config.patch_size:
        raise RecipeError(
            f"`crop_size` is {recipe.crop_size} pixels, smaller than one patch of this CLIP "
            f"({model.config.vision_config.patch_size}); use at least that."
        )
    if recipe.attn_implementation:
        model.set_attn_implementation(recipe.attn_implementation)
    if recipe.gradient_checkpointing:
        enable_checkpointing(model)
    return model, processor


def _build_on_clip(recipe: Recipe) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    if (Path(recipe.clip) / "fingerprint.json").is_file():
        check_clip_folder(recipe.clip)
    model = LDVCForSemanticSegmentation.from_clip_pretrained(recipe.clip, **recipe.model)
    processor = LDVCProcessor.from_clip_pretrained(
        recipe.clip,
        image_stats=recipe.image_stats,
        size=recipe.crop_size,
        prompt_templates=model.config.prompt_template,
    )
    return model, processor


def _load_start(recipe: Recipe) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Load a checkpoint or adapter; the recipe's model keys may change what no weight depends on, such as dropout.

    Raises:
        RecipeError: If the recipe states another architecture than the checkpoint's.
    """
    stored = stored_config(recipe.start_from)
    for field in ADAPTER_FIELDS:
        value = stored.get(field, getattr(LDVCConfig, field, None))
        if field in recipe.model and recipe.model[field] != value:
            raise RecipeError(
                f"`start_from` {recipe.start_from!r} has {field}={value!r}, the recipe says {recipe.model[field]!r}; "
                "weights fit only where these agree: leave the key out, or start from another checkpoint."
            )
    if stored.get("clip_name_or_path") != recipe.clip:
        logger.warning("`clip` %r is not used: `start_from` brings its own CLIP.", recipe.clip)
    # of an adapter's configuration, loading takes only what decides shapes
    fields = {field: stored[field] for field in model_fields() if field in stored} | recipe.model
    model, processor = load_checkpoint(recipe.start_from, **fields)
    # pixel statistics and templates are those that the weights were trained with
    processor.image_processor.size = {"height": recipe.crop_size, "width": recipe.crop_size}
    return model, processor


def describe_start(recipe: Recipe, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """What protocol.json says about the weights that a run starts from; `None` when it starts from CLIP.

    Raises:
        RecipeError: If the run's setting does not allow this start; names both.
    """
    if not recipe.start_from:
        return None
    seen_classes = stored_config(recipe.start_from).get("seen_classes")
    protocol = read_protocol(recipe.start_from)
    if recipe.setting == "transductive":
        _check_transductive_start(recipe, vocabulary, protocol)
    names = seen_classes if protocol is None else names_trained_with_masks(protocol)
    known = seen_classes if protocol is None else names_given_to_the_loss(protocol)
    if recipe.setting != "fully_supervised" and (saw := shared_names(vocabulary.unseen_names, names or [])):
        raise RecipeError(
            f"the recipe holds out the masks of {saw}, but they trained `start_from` {recipe.start_from!r}; start "
            "from another checkpoint or from CLIP, or use --setting fully_supervised."
        )
    if recipe.setting == "inductive" and (knew := shared_names(vocabulary.unseen_names, known or [])):
        raise RecipeError(
            f"inductive training must not know the names {knew}, but `start_from` {recipe.start_from!r} was trained "
            "with them, on pseudo labels; start from another checkpoint or from CLIP, or use --setting transductive."
        )
    is_audited = protocol is not None and not unaudited_parts(protocol)
    if not is_audited:
        reason = "it has no protocol.json" if protocol is None else "; ".join(unaudited_parts(protocol))
        logger.warning("%r does not say all of what trained it (%s): the run is unaudited.", recipe.start_from, reason)
    protocol = protocol or {}
    return {
        "checkpoint": recipe.start_from,
        "is_audited": is_audited,
        "setting": protocol.get("setting"),
        "dataset": protocol.get("dataset"),
        "dataset_fingerprint": protocol.get("dataset_fingerprint"),
        "image_draws": protocol.get("image_draws"),
        "names_trained_with_masks": names,
        "names_given_to_the_loss": known,
    }


def check_start(recipe: Recipe, model: LDVCForSemanticSegmentation) -> dict[str, str]:
    """Hold the weights that a run starts from against their own audit, as evaluation does.

    Args:
        recipe: The settings.
        model: Loaded from `start_from`.

    Returns:
        Fingerprints of the weights, for protocol.json's account of the start.

    Raises:
        RecipeError: If the audit is not of these weights, or says that it may not be believed.
    """
    fingerprints, protocol = checkpoint_fingerprints(model), read_protocol(recipe.start_from)
    seen_classes = stored_config(recipe.start_from).get("seen_classes")
    findings = audit_mismatches(protocol, seen_classes, fingerprints) if protocol else []
    if findings:
        raise RecipeError(
            f"`start_from` {recipe.start_from!r} does not fit its protocol.json: {'; '.join(findings)}. Start from "
            "the checkpoint as its run left it, or take its protocol.json away: the new run is then marked unaudited."
        )
    return fingerprints


def _check_transductive_start(recipe: Recipe, vocabulary: Vocabulary, protocol: dict[str, Any] | None) -> None:
    """Self-training continues an inductive run on the same classes and split.

    Raises:
        RecipeError: If the start was no such run, or nobody knows.
    """
    start = f"`start_from` {recipe.start_from!r}"
    remedy = "start from an inductive run of the same split, or leave `start_from` out to train that half here."
    if protocol is None:
        raise RecipeError(f"{start} has no protocol.json, so that nobody knows which masks trained it; {remedy}")
    if protocol["setting"] != "inductive" or not protocol["keeps_setting"]:
        broken = "" if protocol["keeps_setting"] else " and broke its setting"
        raise RecipeError(
            f"{start} was trained {protocol['setting']}{broken}, self-training needs inductive; {remedy}"
        )
    names = [row["name"] for row in protocol["classes"]]
    if names != list(vocabulary.class_names):
        raise RecipeError(
            f"{start} was trained on the {len(names)} classes {names}, the recipe has the "
            f"{len(vocabulary.class_names)} classes {list(vocabulary.class_names)}; {remedy}"
        )
    if set(protocol["unseen_classes"]) != set(vocabulary.unseen_names):
        raise RecipeError(
            f"{start} held out {sorted(protocol['unseen_classes'])}, the recipe holds out "
            f"{sorted(vocabulary.unseen_names)}; {remedy}"
        )
    draws, half = protocol.get("image_draws"), recipe.max_steps * recipe.batch_size
    if draws not in (None, half):
        logger.warning(
            "%s drew %d images; the published schedule gives each half as many as this recipe's second, %d: scores "
            "do not compare with published ones.",
            *(start, draws, half),
        )


def inductive_half(recipe: Recipe) -> Recipe:
    """The run that a transductive recipe without `start_from` begins with, in the folder `inductive` of its own.

    Source: ZegCLIP's released self-training starts from the inductive run stopped half way: as many steps again, at
    the rates of a schedule twice as long.
    """
    return replace(
        recipe,
        setting="inductive",
        schedule_steps=2 * recipe.max_steps,
        output_dir=own_half(recipe.output_dir),
        results_file=None,
        resume_from_checkpoint="latest" if recipe.resume_from_checkpoint else None,
        controls=False,
        push_to_hub=False,
    )
