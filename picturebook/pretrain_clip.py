"""Pretrain the tiny CLIP of the picturebook on captions.

Commands:
    python -m picturebook.pretrain_clip                              the shipped model, under three hours on one core
    python -m picturebook.pretrain_clip --resume                     continue after an interruption
    python -m picturebook.pretrain_clip --evaluate picturebook/clip  score a folder
    python -m picturebook.pretrain_clip --steps 4 2 2 --pages 600 --run-folder R --output R/clip --record R/r.json
                                                                     a smoke run of a minute

The objective is CLIP's: the summary token of an image against the end token of a caption, contrasted over a batch.
With 26 class names a batch is full of captions that are true of several of its images, so every true pair counts as a
positive instead of only a page and its own caption. Captions name classes; no loss ever sees a mask.

Training runs through three stages: views of 64 pixels, then pages of 128 pixels of which half the patches are dropped,
then whole pages. Layer weights are trained by Muon, everything else by AdamW.
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from picturebook.bpe import build_tokenizer
from picturebook.clip_folder import (
    CLIP_FOLDER,
    build_clip,
    check_clip_folder,
    load_clip_folder,
    resize_positions,
    save_clip_folder,
)  # fmt: skip
from picturebook.pages import PagePool, Views, draw_pool, sample_views
from picturebook.world import NATIVE_SIZE
from picturebook.zero_shot import draw_quiz, score_clip, to_pixel_values


logger = logging.getLogger(__name__)
RECORD_FILE = Path(__file__).resolve().parent.parent / "results" / "picturebook_clip.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of training at one resolution."""

    image_size: int  # pixels
    keep_patches: float  # share of the patches that the encoder sees
    batch_size: int
    steps: int

    @property
    def cost(self) -> float:
        """Pixels that one step shows to the encoder."""
        return self.batch_size * self.image_size**2 * self.keep_patches


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the outcome."""

    world: str = "plain"
    seed: int = 0
    num_pages: int = 60_000  # beyond this the model does not see a page often enough to remember it
    stages: tuple[Stage, ...] = (Stage(64, 1.0, 128, 2600), Stage(128, 0.5, 96, 1500), Stage(128, 1.0, 64, 600))
    num_layers: int = 6
    hidden_size: int = 192
    muon_lr: float = 5e-3  # leaves the plateau at once, where AdamW had not after three minutes
    adamw_lr: float = 2e-3
    warmup_steps: int = 30  # at the start of every stage
    decay_share: float = 0.5  # of the compute, at the end, over which the rates fall to zero
    first_kinds: tuple[float, float, float] = (0.85, 0.10, 0.05)  # shares of objects, scenes, bare stuff
    last_kinds: tuple[float, float, float] = (0.35, 0.60, 0.05)
    curriculum_share: float = 0.4  # of the compute, over which the first shares become the last
    eval_every: int = 250  # steps
    checkpoint_every: int = 100  # steps


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, is_true: Tensor) -> Tensor:
    """Contrast images with captions, where any number of captions may be true of an image.

    Each true pair competes with the untrue pairs of its row and of its column, never with another true pair; with one
    true pair per row this is CLIP's loss.

    Args:
        image_embeds: (batch_size, projection_dim), L2-normalised.
        text_embeds: (batch_size, projection_dim), L2-normalised.
        logit_scale: Scalar, log of the inverse temperature.
        is_true: (batch_size, batch_size) bool, whether caption j is true of image i.
    """
    logits = logit_scale.exp() * image_embeds @ text_embeds.T
    losses = []
    for scores, truth in ((logits, is_true), (logits.T, is_true.T)):
        rivals = scores.masked_fill(truth, -1e4).logsumexp(1, keepdim=True)
        pair_losses = nn.functional.softplus(rivals - scores) * truth
        losses.append((pair_losses.sum(1) / truth.sum(1)).mean())
    return (losses[0] + losses[1]) / 2


def find_true_pairs(views: Views) -> Tensor:
    """`(batch_size, batch_size)` bool: every class that caption j names is visible in image i."""
    missing = ~views.visible.astype(bool) @ views.named.T.astype(np.int64)
    return torch.from_numpy(missing == 0)


def build_optimizers(model: CLIPModel, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, projections, norms and biases."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if ".layers." in name and parameter.ndim == 2 else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, weight_decay=0.05, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Trainer:
    """State of a run: where it stands, what it trains and what it has written.

    Args:
        config: Settings.
        pool: Pages.
        output: Folder of the CLIP that is written whenever the validation score improves.
        run_folder: Checkpoint and log.
    """

    def __init__(self, config: PretrainConfig, pool: PagePool, output: Path, run_folder: Path):
        self.config, self.pool, self.output, self.run_folder = config, pool, output, run_folder
        torch.manual_seed(config.seed)
        self.tokenizer: CLIPTokenizer = build_tokenizer(config.world)
        first = config.stages[0]
        self.model = build_clip(self.tokenizer, first.image_size, config.num_layers, config.hidden_size)
        self.model.set_attn_implementation("eager")  # with few tokens on a CPU, 1.7 times faster than the fused kernel
        self.model.vision_model.embeddings.register_forward_hook(self._drop_patches)
        self.stage_index, self.step, self.seconds, self.best_score = 0, 0, 0.0, -1.0
        self.optimizers = build_optimizers(self.model, config)

    @functools.cached_property
    def quiz(self) -> dict:
        """Validation pages; their textures are neither those of training nor those of the test split."""
        return draw_quiz("validation", self.config.seed, 300, 60, 200, self.config.world)

    @property
    def stage(self) -> Stage:
        """The stage that is running."""
        return self.config.stages[self.stage_index]

    @property
    def progress(self) -> float:
        """Share of the whole run's compute that is done, 0 to 1."""
        total = sum(stage.cost * stage.steps for stage in self.config.stages)
        done = sum(stage.cost * stage.steps for stage in self.config.stages[: self.stage_index])
        return (done + self.stage.cost * self.step) / total

    def run(self):
        """Train through all remaining stages."""
        while True:
            with tqdm(total=self.stage.steps, initial=self.step, desc=f"{self.stage.image_size} px") as bar:
                while self.step < self.stage.steps:
                    loss, true_share = self.train_step()
                    bar.update()
                    bar.set_postfix(loss=f"{loss:.3f}")
                    self._after_step(loss, true_share)
            if self.stage_index + 1 == len(self.config.stages):
                return
            self.enter_stage(self.stage_index + 1)

    def enter_stage(self, stage_index: int):
        """Change resolution and start the optimizers afresh."""
        self.stage_index, self.step = stage_index, 0
        if self.model.config.vision_config.image_size != self.stage.image_size:
            resize_positions(self.model, self.stage.image_size)
        self.optimizers = build_optimizers(self.model, self.config)

    def train_step(self) -> tuple[float, float]:
        """Take one step.

        Returns:
            The loss, and the mean share of the batch's captions that are true of an image.
        """
        started = time.monotonic()
        config, progress = self.config, self.progress
        blend = min(progress / config.curriculum_share, 1)
        kinds = np.array(config.first_kinds) * (1 - blend) + np.array(config.last_kinds) * blend
        rng = np.random.default_rng([config.seed, self.stage_index, self.step])
        views = sample_views(self.pool, self.stage.batch_size, self.stage.image_size, tuple(kinds), rng)
        rate = min(1, (1 - progress) / config.decay_share) * min(1, (self.step + 1) / config.warmup_steps)
        for optimizer, peak in zip(self.optimizers, (config.muon_lr, config.adamw_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
        self.model.train()
        text = self.tokenizer(views.captions, padding=True, return_tensors="pt")
        torch.manual_seed(config.seed + 7919 * self.stage_index + self.step)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self.model(**text, pixel_values=to_pixel_values(views.images))
        is_true = find_true_pairs(views)
        loss = contrastive_loss(
            outputs.image_embeds.float(), outputs.text_embeds.float(), self.model.logit_scale, is_true
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, np.log(100))
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss.item(), is_true.float().mean().item()

    def _after_step(self, loss: float, true_share: float):
        """Log, and at the set intervals evaluate, ship and save."""
        is_last = self.step == self.stage.steps
        seconds = round(self.seconds, 1)
        entry = {"stage": self.stage_index, "step": self.step, "seconds": seconds, "loss": round(loss, 4)}
        if self.step % self.config.eval_every == 0 or is_last:
            self.model.eval()
            scores = score_clip(self.model, self.tokenizer, self.quiz, self.config.world)
            entry |= {name: value for name, value in scores.items() if not isinstance(value, dict)}
            logger.info("%s", json.dumps(entry))
            self._ship(scores)
        if self.step % 10 == 0 or is_last:
            entry |= {"true_share": round(true_share, 4), "logit_scale": round(self.model.logit_scale.exp().item(), 2)}
            with open(self.run_folder / "log.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")
        if self.step % self.config.checkpoint_every == 0 or is_last:
            self.save_checkpoint()

    def _ship(self, scores: dict):
        """Write the CLIP folder if the validation score is the best of this resolution."""
        score = scores["object_accuracy"] + scores["scene_map"] + (self.stage.image_size >= NATIVE_SIZE)
        if score > self.best_score:
            self.best_score = score
            save_clip_folder(self.model, self.tokenizer, NATIVE_SIZE, self.output)

    def save_checkpoint(self):
        """Write the whole state aside, then rename it over the last one."""
        state = {
            "config": dataclasses.asdict(self.config),
            "stage_index": self.stage_index,
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        partial = self.run_folder / "checkpoint.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.run_folder / "checkpoint.pt")

    def load_checkpoint(self):
        """Continue from the last checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it was written under other settings.
        """
        path = self.run_folder / "checkpoint.pt"
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint {path}; start without --resume")
        state = torch.load(path, weights_only=True)
        if json.dumps(state["config"]) != json.dumps(dataclasses.asdict(self.config)):
            raise ValueError(
                f"{path} was written under other settings, {state['config']}; repeat them or start without --resume"
            )
        self.enter_stage(state["stage_index"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.best_score = state["step"], state["seconds"], state["best_score"]

    def _drop_patches(self, module: nn.Module, inputs: tuple, tokens: Tensor) -> Tensor:
        """Forward hook on the embeddings: keep the summary token and a random share of the patches while training."""
        if not self.model.training or self.stage.keep_patches == 1:
            return tokens
        num_patches = tokens.shape[1] - 1
        order = torch.rand(len(tokens), num_patches).argsort(1)[:, : int(num_patches * self.stage.keep_patches)] + 1
        kept = torch.cat([torch.zeros(len(tokens), 1, dtype=order.dtype), order], 1)
        return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))


def evaluate_folder(folder: Path, world: str = "plain", seed: int = 0) -> dict:
    """Score a CLIP folder on pages of the test split, whose textures it has never seen."""
    model, tokenizer, _ = load_clip_folder(folder)
    return score_clip(model, tokenizer, draw_quiz("test", seed, 1000, 200, 1000, world), world)


def write_record(config: PretrainConfig | None, folder: Path, record_file: Path, seconds: float | None, scores: dict):
    """Write the scores of a folder, and how it came about, to a JSON file."""
    model, _, _ = load_clip_folder(folder)
    record = {
        "scores": scores,
        "protocol": "test split, 1000 single objects, 200 single stuff, 1000 scenes, prompt 'a photo of a {}'",
        "fingerprint": check_clip_folder(folder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (Path(folder) / "model.safetensors").stat().st_size,
        "training_seconds": seconds and round(seconds),
        "threads": torch.get_num_threads(),
        "config": config and dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }
    record_file.parent.mkdir(parents=True, exist_ok=True)
    partial = record_file.with_name(record_file.name + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(partial, record_file)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = PretrainConfig()
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="score this CLIP folder and stop")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run folder")
    parser.add_argument("--output", type=Path, default=CLIP_FOLDER, help="CLIP folder to write")
    parser.add_argument("--record", type=Path, default=RECORD_FILE, help="JSON file for the scores")
    default_run = Path(tempfile.gettempdir()) / "picturebook-clip"
    parser.add_argument("--run-folder", type=Path, default=default_run, help="checkpoint, log and drawn pages")
    parser.add_argument("--world", default=defaults.world, help="plain or compositional")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--pages", type=int, default=defaults.num_pages, help="pages to draw")
    parser.add_argument("--steps", type=int, nargs=3, help="steps of the three stages")
    parser.add_argument("--num-layers", type=int, default=defaults.num_layers)
    parser.add_argument("--hidden-size", type=int, default=defaults.hidden_size)
    parser.add_argument("--muon-lr", type=float, default=defaults.muon_lr)
    parser.add_argument("--adamw-lr", type=float, default=defaults.adamw_lr)
    parser.add_argument("--eval-every", type=int, default=defaults.eval_every, help="steps")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pages")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more are slower on shared cores")
    return parser.parse_args()


def main():
    """Pretrain or evaluate, as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        logger.info("%s", json.dumps(evaluate_folder(args.evaluate, args.world, args.seed), indent=2))
        return
    config = PretrainConfig(
        world=args.world, seed=args.seed, num_pages=args.pages, num_layers=args.num_layers,
        hidden_size=args.hidden_size, muon_lr=args.muon_lr, adamw_lr=args.adamw_lr, eval_every=args.eval_every,
    )  # fmt: skip
    if args.steps:
        stages = [
            dataclasses.replace(stage, steps=steps) for stage, steps in zip(config.stages, args.steps, strict=True)
        ]
        config = dataclasses.replace(config, stages=tuple(stages))
    args.run_folder.mkdir(parents=True, exist_ok=True)
    pool = draw_pool(config.num_pages, config.seed, args.run_folder / "pages", args.workers, config.world)
    trainer = Trainer(config, pool, args.output, args.run_folder)
    if args.resume:
        trainer.load_checkpoint()
    trainer.run()
    scores = evaluate_folder(args.output, config.world, config.seed)
    write_record(config, args.output, args.record, trainer.seconds, scores)
    logger.info("%s", json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
