r"""Train LDVC: one recipe in, one folder out.

    accelerate launch train.py                                        the embedded world, minutes on two CPU cores
    accelerate launch train.py recipes/voc2012_inductive.yaml --dataset FOLDER --output_dir outputs/voc
    accelerate launch train.py recipes/voc2012_inductive.yaml --dataset FOLDER --max_steps 2 --cpu true   (smoke run)

Every key of the recipe can be overridden; `--resume_from_checkpoint latest` continues a stopped run.
Two CPU processes (plain `--cpu --num_processes 2` silently starts one):
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
        --dynamo_backend no train.py ...

The folder gets the checkpoint (loads with AutoModel and AutoProcessor), recipe.yaml, protocol.json, results.json,
log.jsonl, curves.png, predictions.png and states/ to resume from.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.utils import logging

from baseline_ldvc import TrainingFreeCLIP
from data_ldvc import (
    JointAugmentation,
    StreamingTrainingSet,
    TrainingCollator,
    TrainingSet,
    dataset_fingerprint,
    load_split,
    map_labels,
    read_sample,
)
from evaluate_ldvc import (
    REPORTED,
    encode_vocabulary,
    evaluate_model,
    format_table,
    permute_names,
    provenance,
    write_json,
)
from inference_ldvc import InferenceSettings, segment_image
from modeling_ldvc import LDVCForSemanticSegmentation
from pictures_ldvc import draw_comparison, save_curves
from processing_ldvc import LDVCProcessor
from protocol_ldvc import ProtocolAudit
from recipe_ldvc import Recipe, RecipeError, describe_keys, read_recipe
from run_state_ldvc import (
    STATE_FOLDER,
    Log,
    Progress,
    check_same_run,
    find_state,
    keep_only_trained_weights,
    save_state,
)
from vocabularies import Vocabulary


logger = logging.get_logger("ldvc.train")

# ---- setting up


def check_output_dir(recipe: Recipe) -> Path:
    """Refuse a folder that holds another run, before any work is done.

    Raises:
        RecipeError: If the folder holds a run and the recipe neither resumes nor overwrites, or a run that cannot be
            resumed with this recipe.
    """
    folder = Path(recipe.output_dir)
    holds_run = any((folder / name).exists() for name in ("recipe.yaml", "results.json", STATE_FOLDER))
    if holds_run and not (recipe.overwrite_output_dir or recipe.resume_from_checkpoint):
        raise RecipeError(
            f"`output_dir` {str(folder)!r} already holds a run; choose another, continue it with "
            "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir true."
        )
    if recipe.resume_from_checkpoint:
        state = find_state(recipe, folder)
        if state is not None:
            check_same_run(recipe, state)
        elif holds_run:
            raise RecipeError(
                f"`output_dir` {str(folder)!r} holds a run without a state to resume from (`save_every` was 0, or it "
                "stopped before the first); choose another folder or --overwrite_output_dir true."
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
    """Load a split as the recipe says."""
    return load_split(
        recipe.dataset,
        split,
        config_name=recipe.dataset_config,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        streaming=streaming,
        revision=recipe.dataset_revision,
        num_images=num_images,
        seed=recipe.seed,
    )


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
        vocabulary.seen_class_ids if recipe.setting == "inductive" else range(num_classes),
        num_classes,
        processor.image_processor.image_mean,
        processor.image_processor.image_std,
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
        for batch in DataLoader(training_set, **options):
            yield {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        return
    num_draws = recipe.max_steps * recipe.batch_size
    training_set = TrainingSet(data, augmentation, num_draws, num_classes, recipe.seed, recipe.reduce_labels)
    draws = range(first_step * recipe.batch_size, num_draws)
    yield from accelerator.prepare(DataLoader(training_set, sampler=draws, **options))


def choose_precision(recipe: Recipe) -> str:
    """Resolve `mixed_precision`: "auto" is bf16 where the device computes in it natively."""
    if recipe.mixed_precision != "auto":
        return recipe.mixed_precision
    if torch.cuda.is_available() and not recipe.cpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    has_native_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if has_native_bf16() else "no"


def build_model(recipe: Recipe) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Build LDVC on the recipe's CLIP, and its processor.

    Raises:
        RecipeError: If a crop is smaller than a patch.
        ValueError: If the CLIP is none, or is not the one that its fingerprint names.
    """
    if (Path(recipe.clip) / "fingerprint.json").is_file():
        from picturebook.clip_folder import check_clip_folder

        check_clip_folder(recipe.clip)
    model = LDVCForSemanticSegmentation.from_clip_pretrained(recipe.clip, **recipe.model)
    if recipe.crop_size < model.config.vision_config.patch_size:
        raise RecipeError(
            f"`crop_size` is {recipe.crop_size} pixels, smaller than one patch of this CLIP "
            f"({model.config.vision_config.patch_size}); use at least that."
        )
    if recipe.attn_implementation:
        model.set_attn_implementation(recipe.attn_implementation)
    processor = LDVCProcessor.from_clip_pretrained(
        recipe.clip,
        image_stats=recipe.image_stats,
        size=recipe.crop_size,
        prompt_templates=model.config.prompt_template,
    )
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, processor


def build_optimizer(recipe: Recipe, model: LDVCForSemanticSegmentation) -> torch.optim.AdamW:
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
    decay = (1 - step / recipe.max_steps) ** recipe.poly_power
    rate = (recipe.learning_rate - recipe.min_learning_rate) * decay + recipe.min_learning_rate
    if step >= recipe.warmup_steps:
        return rate
    return rate * (1 - (1 - step / recipe.warmup_steps) * (1 - recipe.warmup_start))


# ---- training


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Tensor]],
    class_inputs: dict[str, Tensor],
    audit: ProtocolAudit,
    recipe: Recipe,
) -> dict[str, Tensor]:
    """One optimiser step over all accumulated batches; the text tower runs once per batch, not per image.

    Returns:
        Mean `loss`, `focal` and `dice` of the step, detached scalars.
    """
    totals = {}
    for _ in range(recipe.gradient_accumulation_steps):
        batch = next(batches)
        with accelerator.accumulate(model):
            audit.expect(batch.pop("source_labels"))
            outputs = model(**batch, **class_inputs)
            accelerator.backward(outputs.loss)
            if accelerator.sync_gradients and recipe.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        terms = {"loss": outputs.loss, "focal": outputs.focal_loss, "dice": outputs.dice_loss}
        for name, value in terms.items():
            totals[name] = totals.get(name, 0) + value.detach() / recipe.gradient_accumulation_steps
    return totals


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

    @property
    def settings(self) -> InferenceSettings:
        """How evaluation puts pictures through the model."""
        recipe = self.recipe
        return InferenceSettings(recipe.short_side, recipe.window, recipe.stride, recipe.window_batch_size)

    def evaluate(self, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
        """Score a model (default: the trained one) on the evaluation split; every process must call it."""
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
    """Things and stuff of the embedded world, which are reported apart."""
    if recipe.dataset != "picturebook":
        return None
    from picturebook import CLASS_GROUPS

    return CLASS_GROUPS


def set_up(recipe: Recipe, accelerator: Accelerator) -> Run:
    """Load data and model; everything that can be refused is refused here, before training."""
    folder = check_output_dir(recipe)
    images_per_batch(recipe, accelerator)
    vocabulary = recipe.get_vocabulary()
    with accelerator.main_process_first():
        train_data = load_data(recipe, recipe.train_split, recipe.num_train_images, recipe.streaming)
        eval_data = load_data(recipe, recipe.eval_split, recipe.num_eval_images, streaming=False)
    set_seed(recipe.seed)  # the same new weights in every process
    model, processor = build_model(recipe)
    model.set_vocabulary(list(vocabulary.class_names), processor)
    is_inductive = recipe.setting == "inductive"
    seen = vocabulary.seen_class_ids if is_inductive else range(len(vocabulary.class_names))
    model.config.seen_classes = [vocabulary.class_names[i] for i in seen]
    prompts = {
        tuple(ids): name for ids, name in zip(model.config.class_token_ids, vocabulary.class_names, strict=True)
    }
    audit = ProtocolAudit(vocabulary, recipe.setting, prompts)
    if accelerator.is_main_process:
        clear_output_dir(folder, recipe)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))
    accelerator.wait_for_everyone()
    return Run(recipe, accelerator, folder, vocabulary, model, processor, audit, train_data, eval_data)


def train(run: Run) -> Log:
    """The training loop: from step 0, or from a state, to `max_steps`.

    Raises:
        FloatingPointError: If the loss is no longer a number; the last state stays on disk.
    """
    recipe, accelerator, progress = run.recipe, run.accelerator, Progress()
    model, optimizer = accelerator.prepare(run.model, build_optimizer(recipe, run.model))
    keep_only_trained_weights(accelerator, run.model)
    run.audit.watch(run.model)
    accelerator.register_for_checkpointing(progress, run.audit)
    state = find_state(recipe, run.folder)
    if state is not None:
        accelerator.load_state(str(state))
        run.audit.keep_on_first(accelerator)
        logger.warning("resumed at step %d from %s", progress.step, state)
    log = Log(run.folder / "log.jsonl", accelerator, progress.step)
    batches = build_batches(recipe, accelerator, run.vocabulary, run.processor, progress.step, run.train_data)
    class_inputs = run.processor(class_names=run.model.config.seen_classes, return_tensors="pt").to(accelerator.device)
    bar = tqdm(total=recipe.max_steps, initial=progress.step, desc="train", disable=not accelerator.is_main_process)
    model.train()
    while progress.step < recipe.max_steps:
        rate = learning_rate_at(progress.step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = train_step(accelerator, model, optimizer, batches, class_inputs, run.audit, recipe)
        progress.step += 1
        bar.update()
        log_step(run, log, bar, progress.step, rate, terms)
        if recipe.eval_every and progress.step % recipe.eval_every == 0 and progress.step < recipe.max_steps:
            scores = run.evaluate(show_progress=False)["scores"]["0.0"]
            log.write({"step": progress.step, **{name: scores[name] for name in REPORTED}})
        if recipe.save_every and progress.step % recipe.save_every == 0:
            run.audit.bring_together(accelerator)
            save_state(accelerator, run.folder, progress.step, recipe.keep_states)
    bar.close()
    return log


def log_step(run: Run, log: Log, bar: tqdm, step: int, rate: float, terms: dict[str, Tensor]) -> None:
    """Log every `log_every` steps, averaged over processes.

    Raises:
        FloatingPointError: If the loss is no number.
    """
    if step % run.recipe.log_every and step != run.recipe.max_steps:
        return
    terms = {name: run.accelerator.reduce(value, "mean").item() for name, value in terms.items()}
    if not math.isfinite(terms["loss"]):
        raise FloatingPointError(
            f"the loss is {terms['loss']} at step {step}; the last good state is in {run.folder / STATE_FOLDER}: "
            "resume it with a lower learning_rate, or in full precision."
        )
    bar.set_postfix(loss=f"{terms['loss']:.3f}")
    log.write({"step": step, **terms, "lr": rate})


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
    }
    if accelerator.is_main_process:
        write_json(protocol, run.folder / "protocol.json")
    return protocol


def save_checkpoint(
    recipe: Recipe, folder: Path, model: LDVCForSemanticSegmentation, processor: LDVCProcessor
) -> None:
    """Write the checkpoint that users load, aside first so that none is half-written, and push it if asked."""
    aside = folder / "checkpoint.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if recipe.save_adapter_only:
        model.save_adapter(aside)
    else:
        model.save_pretrained(aside)
    processor.save_pretrained(aside)
    for path in aside.iterdir():
        path.chmod(0o644)  # weights are written private, which a shared folder is not
        os.replace(path, folder / path.name)
    aside.rmdir()
    if recipe.push_to_hub:
        model.push_to_hub(recipe.hub_model_id)
        processor.push_to_hub(recipe.hub_model_id)


def draw_pictures(run: Run) -> None:
    """Draw held-out scenes that show unseen classes, beside their labels and the prediction."""
    recipe, vocabulary = run.recipe, run.vocabulary
    num_classes = len(vocabulary.class_names)
    rows, processor = [], run.processor.image_processor
    embeds = encode_vocabulary(run.model, run.processor, vocabulary.class_names, run.accelerator.device)
    run.model.eval()
    for index in range(len(run.eval_data)):
        if len(rows) == recipe.num_pictures:
            break
        image, label_map = read_sample(run.eval_data, index)
        label_map = map_labels(label_map, num_classes, reduce_labels=recipe.reduce_labels)
        if vocabulary.unseen_class_ids and not set(vocabulary.unseen_class_ids) & set(label_map.flatten().tolist()):
            continue
        prediction = segment_image(run.model, image, embeds, run.settings, processor.image_mean, processor.image_std)
        rows.append((image, label_map, prediction))
    if rows:
        draw_comparison(rows, vocabulary.class_names, vocabulary.unseen_names).save(run.folder / "predictions.png")


def score_controls(run: Run, rows: dict[str, Any]) -> dict[str, Any]:
    """Score the permuted-name control and CLIP without training, and add their rows to the table."""
    permuted = run.evaluate(class_names=permute_names(run.vocabulary), offsets=[0.0])
    floor = run.evaluate(TrainingFreeCLIP(run.model.clip).to(run.accelerator.device), offsets=[0.0])
    rows["unseen names permuted"] = permuted["scores"]["0.0"]
    rows["CLIP without training"] = floor["scores"]["0.0"]
    return {"permuted_unseen_names": permuted["scores"]["0.0"], "training_free_clip": floor["scores"]["0.0"]}


def finish(run: Run, log: Log, started: float) -> dict[str, Any]:
    """Score, save the checkpoint and everything that describes it; print the table.

    Raises:
        RuntimeError: If the audit finds that the run did not keep its setting.
    """
    recipe, accelerator = run.recipe, run.accelerator
    training_seconds = time.perf_counter() - started
    protocol = write_protocol(run)
    if not protocol["keeps_setting"]:
        raise RuntimeError(f"unseen classes reached the loss of an inductive run: see {run.folder / 'protocol.json'}.")
    if accelerator.is_main_process:
        save_checkpoint(recipe, run.folder, run.model, run.processor)
    result = run.evaluate()
    rows = {f"LDVC, offset {offset}": scores for offset, scores in result["scores"].items()}
    controls = score_controls(run, rows) if recipe.controls else {}
    scores = result["scores"]["0.0"]
    log.write({"step": recipe.max_steps, **{name: scores[name] for name in REPORTED}})
    if accelerator.is_main_process:
        result |= {
            "recipe": asdict(recipe),
            "controls": controls,
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
        sys.stdout.write(f"\n{format_table(rows)}\n\nwritten to {run.folder}\n")
    accelerator.wait_for_everyone()
    return result


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Train as a recipe says; returns the content of results.json (on the first process)."""
    started = time.perf_counter()
    # Masks from attention scores leave the last layer's value path without gradient.
    has_idle_weights = recipe.model.get("decoder_query") == "class"
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=choose_precision(recipe),
        cpu=recipe.cpu,
        log_with=recipe.report_to,
        project_dir=recipe.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=has_idle_weights)],
    )
    run = set_up(recipe, accelerator)
    if recipe.report_to:
        plain = {key: value for key, value in asdict(recipe).items() if isinstance(value, (str, int, float, bool))}
        accelerator.init_trackers("ldvc", config=plain)
    log = train(run)
    result = finish(run, log, started)
    accelerator.end_training()
    return result


def main(argv: list[str] | None = None) -> int:
    """Command line; user errors end with one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n{describe_keys()}")
        return 0
    try:
        run_recipe(read_recipe(argv))
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError, StrictDataclassError) as error:
        logger.error("train: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
