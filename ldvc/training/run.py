"""The training run: one recipe in, one folder out. `accelerate launch train.py`, or `ldvc train` on one process."""

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, set_seed
from huggingface_hub import upload_file
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from ldvc.data.class_lists import check_label_convention
from ldvc.data.provenance import check_writable, provenance, stored_fingerprint, write_json
from ldvc.data.samples import (
    JointAugmentation,
    StreamingTrainingSet,
    TrainingCollator,
    TrainingSet,
    dataset_fingerprint,
    load_stated_split,
    map_labels,
    read_sample,
)
from ldvc.data.vocabularies import Vocabulary
from ldvc.data.worlds import WORLDS
from ldvc.masks.drawing import draw_comparison, save_curves
from ldvc.model.inference_ldvc import InferenceSettings, encode_classes, segment_image
from ldvc.model.loss_ldvc import loss_options, segmentation_loss
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.weights_ldvc import ADAPTER_WEIGHTS, weights_fingerprint, write_files
from ldvc.scoring.evaluate import (
    FLOOR_METHOD,
    REPORTED,
    evaluate_model,
    format_table,
    permute_names,
    reported_offsets,
)
from ldvc.scoring.labels import count_labels, missing_labels
from ldvc.scoring.protocol import (
    PROTOCOL_FILE,
    SCORED_ON_TRAINING_IMAGES,
    WEIGHTS_FIELD,
    ProtocolAudit,
    checkpoint_fingerprints,
    describe_audit,
    is_of_training_split,
)
from ldvc.scoring.signatures import Signature, describe_signatures, find_signatures
from ldvc.segmenters.training_free import TrainingFreeCLIP
from ldvc.training.machine import build_accelerator
from ldvc.training.optimisation import Step, build_optimizer, learning_rate_at
from ldvc.training.recipe import Recipe, RecipeError
from ldvc.training.start import build_model, check_start, describe_start, inductive_half
from ldvc.training.state import (
    STATE_FOLDER,
    Log,
    Origin,
    Progress,
    check_same_run,
    find_state,
    keep_only_trained_weights,
    kept_precision,
    load_state,
    prepare_for_shards,
    save_state,
    set_aside_newer,
    whole_model,
)


logger = logging.get_logger("ldvc.train")

# What a run leaves at its end, and on its way there.
FINAL_FILES = ("results.json", "model.safetensors", ADAPTER_WEIGHTS)
RUN_FILES = ("recipe.yaml", STATE_FOLDER, *FINAL_FILES)

# What helps against it changes the run, so that no state of this one could go on with it.
DIVERGED = (
    "its states only go on with the same recipe, to the same end: start the run anew with a lower --learning_rate, "
    "with --max_grad_norm 1, or with --mixed_precision no, and --overwrite_output_dir true or another --output_dir."
)

# ---- setting up


def check_output_dir(recipe: Recipe) -> Path:
    """Refuse a folder that holds another run, before any work is done.

    Raises:
        RecipeError: If the folder holds a run and the recipe neither resumes nor overwrites, or a run that cannot be
            resumed with this recipe.
    """
    folder = Path(recipe.output_dir)
    holds_run = any((folder / name).exists() for name in RUN_FILES)
    if holds_run and not (recipe.overwrite_output_dir or recipe.resume_from_checkpoint):
        raise RecipeError(
            f"`output_dir` {str(folder)!r} already holds a run; choose another, continue it with "
            "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir true."
        )
    if recipe.resume_from_checkpoint:
        state = find_state(recipe, folder)
        if state is not None:
            check_same_run(recipe, state.parent.parent)
        elif any((folder / name).exists() for name in FINAL_FILES):  # a run stopped before its first state starts anew
            raise RecipeError(
                f"`output_dir` {str(folder)!r} holds a run without a state to resume from (`save_every` was 0); "
                "choose another folder or --overwrite_output_dir true."
            )
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"`output_dir` {str(folder)!r} is a file; choose a folder.")
    return folder


def clear_output_dir(folder: Path, recipe: Recipe) -> None:
    """Make the folder; with `overwrite_output_dir`, remove what an earlier run wrote that this one would mix with."""
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.overwrite_output_dir and not recipe.resume_from_checkpoint:
        shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)
        for pattern in ("log.jsonl", "*.json", "*.safetensors", "curves.png", "predictions.png"):
            for path in folder.glob(pattern):
                path.unlink()


def remove_traces(folder: Path) -> None:
    """Remove what a run without a step wrote, so that the same command may be given again once its data is mended."""
    for name in ("recipe.yaml", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other files are in it
        folder.rmdir()


def images_per_batch(recipe: Recipe, accelerator: Accelerator) -> int:
    """Images per process and forward pass.

    Raises:
        RecipeError: If the batch cannot be shared out evenly.
    """
    parts = accelerator.num_processes * recipe.gradient_accumulation_steps
    if recipe.batch_size % parts:
        raise RecipeError(
            f"`batch_size` {recipe.batch_size} cannot be shared by {accelerator.num_processes} processes x "
            f"{recipe.gradient_accumulation_steps} accumulation steps; use a multiple of {parts}."
        )
    return recipe.batch_size // parts


def load_data(recipe: Recipe, split: str, num_images: int | None, streaming: bool) -> Any:
    """Load a split as the recipe says; whatever the seed, the picture book is scored on the same pages."""
    check_label_convention(
        recipe.dataset,
        recipe.get_vocabulary().class_names,
        reduce_labels=recipe.reduce_labels,
        revision=recipe.dataset_revision,
    )
    seed = recipe.seed if split == recipe.train_split else 0
    return load_stated_split(recipe, split, streaming=streaming, num_images=num_images, seed=seed)


def build_batches(
    recipe: Recipe,
    accelerator: Accelerator,
    vocabulary: Vocabulary,
    processor: LDVCProcessor,
    first_step: int,
    data: Any,
) -> Iterator[dict[str, Tensor]]:
    """Yield training batches from `first_step` on; draw k is the same whatever the processes, workers and restarts.

    Yields:
        `pixel_values`, `labels` and `source_labels`, see `TrainingCollator`, on the device.
    """
    size, crop = images_per_batch(recipe, accelerator), (recipe.crop_size, recipe.crop_size)
    augmentation = JointAugmentation(
        tuple(recipe.image_scale),
        tuple(recipe.ratio_range),
        crop,
        recipe.max_class_share,
        recipe.flip_probability,
        recipe.photometric,
    )
    num_classes = len(vocabulary.class_names)
    collator = TrainingCollator(
        crop,
        range(num_classes) if recipe.setting == "fully_supervised" else vocabulary.seen_class_ids,
        num_classes,
        processor.image_processor.image_mean,
        processor.image_processor.image_std,
        pseudo_region=recipe.pseudo_region if recipe.setting == "transductive" else None,
    )
    # A generator of its own: a loader draws its workers' seed, which would shift dropout's random stream on resuming.
    generator = torch.Generator().manual_seed(recipe.seed)
    options = {"batch_size": size, "collate_fn": collator, "num_workers": recipe.num_workers, "generator": generator}
    if recipe.streaming:
        # A stream cannot jump: a resumed run reads another order of it.
        training_set = StreamingTrainingSet(
            data,
            augmentation,
            num_classes,
            seed=recipe.seed + first_step * recipe.batch_size,
            reduce_labels=recipe.reduce_labels,
            rank=accelerator.process_index,
            num_ranks=accelerator.num_processes,
        )
        for batch in in_own_words(DataLoader(training_set, **options)):
            yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        return
    num_draws = recipe.max_steps * recipe.batch_size
    training_set = TrainingSet(data, augmentation, num_draws, num_classes, recipe.seed, recipe.reduce_labels)
    draws = range(first_step * recipe.batch_size, num_draws)
    yield from in_own_words(accelerator.prepare(DataLoader(training_set, sampler=draws, **options)))


def in_own_words(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield batches; what a data worker says of a bad sample comes without the worker's traceback around it.

    Yields:
        The batches.

    Raises:
        ValueError: As the data set raised it.
    """
    try:
        yield from batches
    except ValueError as error:
        raise ValueError(str(error).rpartition("\nValueError: ")[2].strip()) from error


# ---- training


@dataclass
class Run:
    """Everything a training run works with."""

    recipe: Recipe
    accelerator: Accelerator
    folder: Path
    vocabulary: Vocabulary
    model: LDVCForSemanticSegmentation
    processor: LDVCProcessor
    audit: ProtocolAudit
    train_data: Any
    eval_data: Any
    labelled: dict[str, int] | None = None  # pixels of each class in `eval_data`
    origin: Origin | None = None

    @property
    def loss_class_names(self) -> list[str]:
        """Names that the loss knows, in the order of its channels: an inductive run does not know the unseen ones."""
        if self.recipe.setting != "inductive":
            return list(self.vocabulary.class_names)
        return [self.vocabulary.class_names[class_id] for class_id in self.vocabulary.seen_class_ids]

    @property
    def settings(self) -> InferenceSettings:
        """How evaluation puts pictures through the model."""
        recipe = self.recipe
        return InferenceSettings(recipe.short_side, recipe.window, recipe.stride, recipe.window_batch_size)

    def evaluate(self, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
        """Score a model (default: the trained one) on the evaluation split; every process must call it."""
        options.setdefault("offsets", reported_offsets(self.model.config))
        return evaluate_model(
            self.model if model is None else model,
            self.processor,
            self.eval_data,
            self.vocabulary,
            self.settings,
            reduce_labels=self.recipe.reduce_labels,
            groups=class_groups(self.recipe),
            **options,
        )


def class_groups(recipe: Recipe) -> dict[str, list[int]] | None:
    """Groups of classes that are reported apart: things and stuff of the embedded world."""
    return dict(WORLDS[recipe.dataset].class_groups) if recipe.dataset in WORLDS else None


def set_up(recipe: Recipe, accelerator: Accelerator) -> Run:
    """Load data and model; everything that can be refused is refused here, before training."""
    folder = check_output_dir(recipe)
    check_writable(recipe.results_file)
    images_per_batch(recipe, accelerator)
    vocabulary = recipe.get_vocabulary()
    start = describe_start(recipe, vocabulary)
    with accelerator.main_process_first():
        train_data = load_data(recipe, recipe.train_split, recipe.num_train_images, recipe.streaming)
        eval_data = load_data(recipe, recipe.eval_split, recipe.num_eval_images, streaming=False)
    labelled = count_labels(eval_data, vocabulary, recipe.reduce_labels, recipe.eval_split)
    warnings = [missing_labels(labelled, vocabulary)]
    if recipe.warmup_steps > recipe.max_steps:
        warnings.append(
            f"`warmup_steps` {recipe.warmup_steps} is more than `max_steps` {recipe.max_steps}: the run ends before "
            "the learning rate has risen to `learning_rate`."
        )
    for warning in filter(None, warnings if accelerator.is_main_process else ()):
        logger.warning("%s", warning)
    set_seed(recipe.seed)  # the same new weights in every process
    model, processor = build_model(recipe)
    if start:
        start |= check_start(recipe, model)
    if accelerator.process_index:
        set_seed(recipe.seed + accelerator.process_index)  # but dropout of its own
    model.set_vocabulary(list(vocabulary.class_names), processor)
    unseen = () if recipe.setting == "fully_supervised" else vocabulary.unseen_names
    model.config.seen_classes = [name for name in vocabulary.class_names if name not in unseen]
    prompts = {
        tuple(ids): name for ids, name in zip(model.config.class_token_ids, vocabulary.class_names, strict=True)
    }
    audit = ProtocolAudit(vocabulary, recipe.setting, prompts, recipe.pseudo_region, recipe.pseudo_threshold, start)
    if accelerator.is_main_process:
        clear_output_dir(folder, recipe)
        text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
        write_files(folder, {"recipe.yaml": text.encode()})  # half of it would stop every resume
    accelerator.wait_for_everyone()
    origin = describe_origin(recipe, accelerator, train_data, model, start)
    return Run(
        recipe, accelerator, folder, vocabulary, model, processor, audit, train_data, eval_data, labelled, origin
    )


def describe_origin(
    recipe: Recipe, accelerator: Accelerator, train_data: Any, model: nn.Module, start: dict[str, Any] | None
) -> Origin:
    """Take the fingerprints that a resumed run is held against."""
    # a drawn world is its code and its seed; how its pages are packed depends on libraries
    fingerprint = dataset_fingerprint if recipe.dataset in WORLDS else stored_fingerprint
    return Origin(
        accelerator.mixed_precision,
        (recipe.dataset, fingerprint(train_data)),
        (recipe.start_from or recipe.clip, weights_fingerprint(model.clip.state_dict())[:16]),
        start,
    )


def prepare_step(run: Run, progress: Progress) -> Step:
    """Put model and optimiser on the device, watched by the audit, and continue from a state if there is one."""
    recipe, accelerator = run.recipe, run.accelerator
    # Masks from attention scores leave the last layer's value path without gradient.
    has_idle_weights = run.model.config.decoder_query == "class"
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=has_idle_weights)
    if accelerator.distributed_type == DistributedType.FSDP:
        prepare_for_shards(accelerator, run.model)
    loss = run.audit.watch(run.model, segmentation_loss)
    model, optimizer = accelerator.prepare(run.model, build_optimizer(recipe, run.model))
    keep_only_trained_weights(accelerator, run.model)
    state = find_state(recipe, run.folder)
    if state is not None:
        load_state(accelerator, state, (progress, run.audit, run.origin))
        run.audit.keep_on_first(accelerator)
        logger.warning("resumed at step %d from %s", progress.step, state)
        aside = set_aside_newer(run.folder, progress.step) if accelerator.is_main_process else []
        if aside:
            logger.warning("newer states were set aside: %s", ", ".join(path.name for path in aside))
    class_inputs = run.processor(class_names=run.loss_class_names, return_tensors="pt").to(accelerator.device)
    unseen = run.vocabulary.unseen_class_ids if recipe.setting == "transductive" else ()
    options = loss_options(run.model.config)
    return Step(accelerator, model, optimizer, class_inputs, loss, run.audit, recipe, options, unseen)


def train(run: Run, progress: Progress) -> tuple[Log, nn.Module]:
    """The training loop: from step 0, or from a state, to `max_steps`.

    Args:
        run: Data, model and audit.
        progress: Counts steps and time, from a state on where there is one.

    Returns:
        The log, and the model as the accelerator prepared it.

    Raises:
        FloatingPointError: If loss or weights are no longer numbers; the last state stays on disk.
    """
    recipe, accelerator = run.recipe, run.accelerator
    take_step = prepare_step(run, progress)
    log = Log(run.folder / "log.jsonl", accelerator, progress.step, recipe.max_steps)
    batches = build_batches(recipe, accelerator, run.vocabulary, run.processor, progress.step, run.train_data)
    bar = tqdm(total=recipe.max_steps, initial=progress.step, desc="train", disable=not accelerator.is_main_process)
    take_step.model.train()
    while progress.step < recipe.max_steps:
        rate = learning_rate_at(progress.step, recipe)
        for group in take_step.optimizer.param_groups:
            group["lr"] = rate
        terms = take_step(batches)
        progress.step += 1
        bar.update()
        log_step(run, log, bar, progress.step, rate, terms)
        if recipe.eval_every and progress.step % recipe.eval_every == 0 and progress.step < recipe.max_steps:
            scores = run.evaluate(whole_model(accelerator, take_step.model), show_progress=False)["scores"]
            log_scores(log, progress.step, scores["0.0"])
        if recipe.save_every and progress.step % recipe.save_every == 0:
            check_weights(run, take_step.model, progress.step)
            run.audit.bring_together(accelerator)
            counted = (progress, run.audit, run.origin)
            save_state(accelerator, run.folder, progress.step, recipe.keep_states, counted)
    bar.close()
    return log, take_step.model


def log_step(run: Run, log: Log, bar: tqdm, step: int, rate: float, terms: dict[str, Tensor]) -> None:
    """Log every `log_every` steps, averaged over processes.

    Raises:
        FloatingPointError: If the loss is no number.
    """
    if step % run.recipe.log_every and step != run.recipe.max_steps:
        return
    terms = {name: run.accelerator.reduce(value, "mean").item() for name, value in terms.items()}
    if not math.isfinite(terms["loss"]):
        raise FloatingPointError(f"the loss is {terms['loss']} at step {step}; {DIVERGED}")
    bar.set_postfix(loss=f"{terms['loss']:.3f}")
    log.write({"step": step, **terms, "lr": rate})


def check_weights(run: Run, model: nn.Module, step: int) -> None:
    """Look at the trained weights before they become a state; the loss is looked at in the lines of the log only.

    Args:
        run: The run.
        model: As the accelerator prepared it, perhaps in shards.
        step: Steps taken.

    Raises:
        FloatingPointError: If a weight is no number, on all processes alike.
    """
    weights = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    parts = [getattr(weight, "to_local", lambda weight=weight: weight)() for weight in weights]
    is_broken = torch.stack([~part.isfinite().all() for part in parts]).any()
    if run.accelerator.reduce(is_broken.float(), "sum").item():
        raise FloatingPointError(f"weights are no numbers after step {step}; {DIVERGED}")


def log_scores(log: Log, step: int, scores: dict[str, Any], floor: dict[str, Any] | None = None) -> list[Signature]:
    """Log an evaluation, with the failure signatures that it shows."""
    record = {"step": step, **{name: scores[name] for name in REPORTED}}
    signatures = find_signatures(scores, [*log.records, record], floor)
    if signatures:
        record["signatures"] = [signature.message for signature in signatures]
    log.write(record)
    return signatures


# ---- after training


def write_protocol(run: Run) -> dict[str, Any]:
    """Sum the audit over processes and write protocol.json."""
    accelerator = run.accelerator
    counts = accelerator.reduce(run.audit.counts.to(accelerator.device)).cpu().numpy()
    draws = int(accelerator.reduce(torch.tensor(run.audit.num_draws, device=accelerator.device)).item())
    protocol = run.audit.report(counts, draws)
    protocol |= {
        "dataset": run.recipe.dataset,
        "train_split": run.recipe.train_split,
        "num_train_images": None if run.recipe.streaming else len(run.train_data),
        "dataset_fingerprint": dataset_fingerprint(run.train_data),
        "seed": run.recipe.seed,
        **checkpoint_fingerprints(run.model),
    }
    if accelerator.is_main_process:
        write_json(protocol, run.folder / PROTOCOL_FILE)
    return protocol


def save_checkpoint(
    recipe: Recipe, folder: Path, model: LDVCForSemanticSegmentation, processor: LDVCProcessor
) -> None:
    """Write the checkpoint that users load, aside first so that none is half-written.

    Raises:
        OSError: If it cannot be written.
    """
    aside = folder / "checkpoint.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        if recipe.save_adapter_only:
            model.save_adapter(aside)
        else:
            model.save_pretrained(aside)
        processor.save_pretrained(aside)
    except (OSError, SafetensorError) as error:  # a full disk, in the words of Python and of safetensors
        raise OSError(
            f"the checkpoint cannot be written to {aside} ({error}); make room, then continue the run with "
            "--resume_from_checkpoint latest."
        ) from error
    for path in aside.iterdir():
        path.chmod(0o644)  # weights are written private, which a shared folder is not
        os.replace(path, folder / path.name)
    aside.rmdir()


def push_checkpoint(run: Run) -> None:
    """Upload checkpoint and audit, when everything is on disk.

    Raises:
        OSError: If that fails; says how to do it again.
    """
    repository, audit = run.recipe.hub_model_id, run.folder / PROTOCOL_FILE
    try:
        run.model.push_to_hub(repository)
        run.processor.push_to_hub(repository)
        # the audit goes where the weights go
        upload_file(path_or_fileobj=audit, path_in_repo=PROTOCOL_FILE, repo_id=repository)
    except Exception as error:  # of the network, of the Hub, of a login: each library has its own
        raise OSError(
            f"the run is finished, saved and scored in {run.folder}, but could not be pushed to {repository!r} "
            f"({' '.join(str(error).split())[:300]}); once the Hub can be reached: ldvc publish {run.folder} --output "
            f"hub/{repository.split('/')[-1]} --push_to_hub {repository}"
        ) from error


def draw_pictures(run: Run) -> None:
    """Draw held-out scenes that show unseen classes, beside their labels and the prediction."""
    recipe, vocabulary = run.recipe, run.vocabulary
    num_classes = len(vocabulary.class_names)
    rows, processor = [], run.processor.image_processor
    _, embeds = encode_classes(run.model, run.processor, vocabulary.class_names)
    offsets = run.model.config.seen_score_offset * run.model.seen_class_mask(vocabulary.class_names)
    run.model.eval()
    for index in range(len(run.eval_data)):
        if len(rows) == recipe.num_pictures:
            break
        image, label_map = read_sample(run.eval_data, index)
        label_map = map_labels(label_map, num_classes, reduce_labels=recipe.reduce_labels)
        if vocabulary.unseen_class_ids and not set(vocabulary.unseen_class_ids) & set(label_map.flatten().tolist()):
            continue
        statistics = (processor.image_mean, processor.image_std)
        prediction = segment_image(run.model, image, embeds, run.settings, *statistics, offsets)
        rows.append((image, label_map, prediction))
    if rows:
        draw_comparison(rows, vocabulary.class_names, vocabulary.unseen_names).save(run.folder / "predictions.png")


def score_controls(run: Run, rows: dict[str, Any]) -> dict[str, Any]:
    """Score CLIP without training, and permuted names where there are two to exchange; add both to the table."""
    clip = TrainingFreeCLIP(run.model.clip, FLOOR_METHOD, softmax_scale=None)
    floor = run.evaluate(clip.to(run.accelerator.device), offsets=[0.0])
    rows["CLIP without training"] = floor["scores"]["0.0"]
    controls = {"training_free_clip": floor["scores"]["0.0"]}
    if len(run.vocabulary.scored_unseen_class_ids) > 1:
        permuted = run.evaluate(class_names=permute_names(run.vocabulary), offsets=[0.0])
        rows["unseen names permuted"] = controls["permuted_unseen_names"] = permuted["scores"]["0.0"]
    return controls


def finish(run: Run, log: Log, training_seconds: float) -> dict[str, Any]:
    """Score, save the checkpoint and everything that describes it; print the table.

    Raises:
        RuntimeError: If the audit finds that the run did not keep its setting.
    """
    recipe, accelerator = run.recipe, run.accelerator
    protocol = write_protocol(run)
    if not protocol["keeps_setting"]:
        raise RuntimeError(
            f"masks or names of unseen classes reached the loss of the {recipe.setting} run, which forbids them: see "
            f"{run.folder / PROTOCOL_FILE}."
        )
    if accelerator.is_main_process:
        save_checkpoint(recipe, run.folder, run.model, run.processor)
    result = run.evaluate()
    rows = {f"LDVC, offset {offset}": scores for offset, scores in result["scores"].items()}
    controls = score_controls(run, rows) if recipe.controls else {}
    signatures = log_scores(log, recipe.max_steps, result["scores"]["0.0"], controls.get("training_free_clip"))
    if accelerator.is_main_process:
        result |= {
            "labelled_pixels": run.labelled,
            "scored_on_training_images": is_of_training_split(
                protocol, recipe.dataset, recipe.eval_split, dataset_fingerprint(run.eval_data), recipe.seed
            ),
            "recipe": asdict(recipe),
            "controls": controls,
            WEIGHTS_FIELD: protocol[WEIGHTS_FIELD],
            "audit": describe_audit(protocol),
            "signatures": describe_signatures(signatures),
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
            "training_seconds": round(training_seconds, 1),
            **provenance(run.model.config, run.eval_data, recipe.seed),
        }
        for path in filter(None, (run.folder / "results.json", recipe.results_file)):
            write_json(result, path)
        save_curves(log.records, run.folder / "curves.png")
        draw_pictures(run)
        lines = [f"\n{format_table(rows)}\n", *notes_on_scores(run, result, protocol)]
        lines += [signature.message for signature in signatures]
        sys.stdout.write("\n".join([*lines, f"written to {run.folder}\n"]))
        if recipe.push_to_hub:
            push_checkpoint(run)
    accelerator.wait_for_everyone()
    return result


def notes_on_scores(run: Run, result: dict[str, Any], protocol: dict[str, Any]) -> list[str]:
    """Lines that a reader of the numbers must know."""
    lines = [missing_labels(run.labelled, run.vocabulary)]
    if findings := result["audit"]["findings"]:
        lines.append(f"UNAUDITED: {'; '.join(findings)}")
    if result["scored_on_training_images"]:
        lines.append(SCORED_ON_TRAINING_IMAGES)
    expected = set(run.model.config.seen_classes)
    untrained = [row["name"] for row in protocol["classes"] if not row["positive_pixels"] and row["name"] in expected]
    if untrained:
        lines.append(f"no labelled pixel of these classes was drawn in training: {', '.join(untrained)}")
    return [line for line in lines if line]


def train_to_end(run: Run, progress: Progress) -> Log:
    """Train, and leave the trained model in the run as it was before Accelerate prepared it.

    Args:
        run: Data, model and audit.
        progress: See `train`.

    Returns:
        The log.
    """
    log, model = train(run, progress)
    run.model = whole_model(run.accelerator, model)
    vars(run.model).pop("forward", None)  # Accelerate's autocast: the scores are to be those of ldvc evaluate
    # The wrapped model goes here, before the process group does: as its last holder, it waits for the group's threads
    # while these wait for Python, and now and then a process of several stayed so for ever after all was written.
    return log


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Train as a recipe says, both halves of a transductive one.

    Returns:
        The content of results.json, on the first process.
    """
    if recipe.setting == "transductive" and recipe.start_from is None:
        recipe.get_vocabulary()  # what is wrong with it is said of this setting, not of the first half's
        half = inductive_half(recipe)
        recipe = replace(recipe, start_from=half.output_dir)
        check_output_dir(recipe)
        results = Path(half.output_dir, "results.json")
        if half.resume_from_checkpoint and results.is_file():
            check_same_run(half, results.parent)
        else:
            run_one(half, is_last=False)
        return run_one(recipe, first_half=json.loads(results.read_text()))
    return run_one(recipe)


def run_one(recipe: Recipe, is_last: bool = True, first_half: dict[str, Any] | None = None) -> dict[str, Any]:
    """One training run.

    Args:
        recipe: Its settings.
        is_last: Whether the processes may part afterwards.
        first_half: Results of the half before, whose time counts and whose precision stays.

    Returns:
        See `run_recipe`.

    Raises:
        ValueError: If data or recipe cannot be used.
        OSError: If a file cannot be read or written.
    """
    first_half = first_half or {}
    progress = Progress(seconds_before=first_half.get("training_seconds", 0.0))
    accelerator = build_accelerator(recipe, kept_precision(recipe) or first_half.get("mixed_precision"))
    run = set_up(recipe, accelerator)
    if recipe.report_to:
        plain = {key: value for key, value in asdict(recipe).items() if isinstance(value, (str, int, float, bool))}
        accelerator.init_trackers("ldvc", config=plain)
    try:
        log = train_to_end(run, progress)
    except (ValueError, OSError):  # of data that cannot be read, as a rule
        if not (progress.step or recipe.resume_from_checkpoint):  # of a resumed run, nothing is of this call
            remove_traces(run.folder)
        raise
    result = finish(run, log, progress.seconds)
    accelerator.free_memory()
    if is_last:
        accelerator.end_training()
    else:
        for tracker in accelerator.trackers:
            tracker.finish()
    return result
