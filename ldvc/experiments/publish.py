"""A checkpoint becomes a folder for the Hub, with code, card, audit and hashes: `ldvc publish`."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from ldvc.experiments.cards import check_card, make_card, read_words, render_card
from ldvc.experiments.ledger import differences, load_result, settings_of
from ldvc.model.compat_ldvc import code_digest
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.places import ROOT
from ldvc.scoring.protocol import (
    PROTOCOL_FILE,
    WEIGHTS_FIELD,
    checkpoint_fingerprints,
    protocol_mismatches,
    read_protocol,
)
from ldvc.training.recipe import Recipe, read_recipe


NO_DIGESTS = "CODE_DIGESTS: dict[str, str] = {}\n"  # as it stands in the configuration's code
SUMS, FILES, RECIPE_FILE = "SHA256SUMS", "files.json", "recipe.yaml"
HUB_FILES = Path(__file__).resolve().parent / "hub_files"  # of other services on the Hub; imports nothing of ours
HANDLER_FILE, MODEL_FOLDER = "handler.py", "model"
SPACE_NEEDS = ("torch", "transformers", "safetensors", "pillow", "numpy", "gradio")


class PublishError(ValueError):
    """A checkpoint or folder that cannot be published; the message names what is missing and the remedy."""


# ---- what may be published


def read_checkpoint(folder: Path, results: Path | None) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Read recipe, audit and result of a checkpoint, and hold them against each other.

    Args:
        folder: What `train.py` wrote.
        results: Result file, if it is not FOLDER/results.json.

    Raises:
        PublishError: If one is missing, or they belong to different runs.
        LedgerError: If the result lacks a field.
    """
    if not folder.is_dir():
        raise PublishError(f"there is no folder {str(folder)!r}; give the output folder of a training run.")
    for name in (RECIPE_FILE, PROTOCOL_FILE):
        if not (folder / name).is_file():
            raise PublishError(f"{folder} has no {name}; publish the output folder of train.py as it is.")
    results = results or folder / "results.json"
    if not results.is_file():
        raise PublishError(f"there are no results at {results}; finish the run, or name its file with --results.")
    result = load_result(results)
    if "recipe" not in result:
        raise PublishError(f"{results} was written by an evaluation; use the one that train.py wrote.")
    values = yaml.safe_load((folder / RECIPE_FILE).read_text())
    recipe = Recipe(**values)
    made, scored = (settings_of(run) | {"seed": run["seed"]} for run in (values, result["recipe"]))
    changed = differences(made, scored)
    if changed:
        raise PublishError(f"{results} is of another run than {folder / RECIPE_FILE}: {'; '.join(changed)}.")
    protocol = read_protocol(str(folder))
    if WEIGHTS_FIELD in result and result[WEIGHTS_FIELD] != protocol.get(WEIGHTS_FIELD):
        raise PublishError(f"{results} is of other weights than {folder / PROTOCOL_FILE}; give those of the same run.")
    return recipe, protocol, result


def check_audit(protocol: Mapping[str, Any], recipe: Recipe, model: LDVCForSemanticSegmentation) -> None:
    """Refuse a checkpoint whose audit does not fit its recipe, its configuration or its weights.

    Raises:
        PublishError: Names every mismatch.
    """
    seen_classes, fingerprints = model.config.seen_classes, checkpoint_fingerprints(model)
    findings = protocol_mismatches(protocol, recipe.setting, recipe.get_vocabulary(), seen_classes, fingerprints)
    if findings:
        raise PublishError(f"the checkpoint's {PROTOCOL_FILE} does not fit it: {'; '.join(findings)}; train again.")


# ---- building


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse to write over anything, but, if asked, over a folder that was built here.

    Raises:
        PublishError: Names the folder.
    """
    if not output.exists():
        return
    if not overwrite:
        raise PublishError(f"{output} is there already; choose another folder, or replace it with --overwrite.")
    if not (output / FILES).is_file():
        raise PublishError(f"{output} was not built by ldvc publish (it has no {FILES}); choose another folder.")


def build_folder(
    checkpoint: Path, output: Path, results: Path | None = None, overwrite: bool = False, handler: bool = False
) -> Path:
    """Build the Hub folder: aside first, then renamed, so that none is half-written.

    Args:
        checkpoint: Output folder of a training run, or an embedded checkpoint.
        output: The folder to make; its name is the card's title.
        results: Result file, if it is not CHECKPOINT/results.json.
        overwrite: Replace a folder that is there.
        handler: Add handler.py, which Inference Endpoints call.

    Raises:
        PublishError: If the checkpoint cannot be published, or `output` is there already.
        ValueError: If weights are missing.
        OSError: If a file cannot be read or written.
    """
    from ldvc.scoring.evaluate import load_checkpoint

    check_output(output, overwrite)
    recipe, protocol, result = read_checkpoint(checkpoint, results)
    model, processor = load_checkpoint(str(checkpoint))
    check_audit(protocol, recipe, model)
    with built_aside(output) as part:
        model.config.clip_name_or_path = _public(model.config.clip_name_or_path)
        model.save_pretrained(part)
        processor.save_pretrained(part)
        write_code_digests(part)
        if handler:
            shutil.copyfile(HUB_FILES / HANDLER_FILE, part / HANDLER_FILE)
        write_papers(part, output.name, recipe, protocol, result, model.config.vision_config.patch_size)
        write_sums(part)
    return output


@contextmanager
def built_aside(output: Path) -> Iterator[Path]:
    """Give a folder that takes the place of `output` when the block ends well, and is deleted when it does not."""
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if output.exists():
            shutil.rmtree(output)
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def build_space(folder: Path, output: Path, overwrite: bool = False) -> Path:
    """Build the folder of a Space around a built folder: page, requirements and card.

    Args:
        folder: From `build_folder`; goes into it as it is.
        output: The folder to make; its name is the page's title.
        overwrite: Replace a folder that is there.

    Raises:
        PublishError: If `output` is there already.
        PackageNotFoundError: If gradio is not installed, whose version is to be named.
    """
    check_output(output, overwrite)
    versions = {name: version(name).partition("+")[0] for name in SPACE_NEEDS}
    python = ".".join(platform.python_version_tuple()[:2])
    with built_aside(output) as part:
        shutil.copytree(folder, part / MODEL_FOLDER)
        shutil.copyfile(HUB_FILES / "app.py", part / "app.py")
        shutil.copyfile(ROOT / "LICENSE", part / "LICENSE")
        (part / "requirements.txt").write_text("".join(f"{name}=={number}\n" for name, number in versions.items()))
        card = (HUB_FILES / "space.md").read_text(encoding="utf-8")
        facts = {"title": output.name, "gradio": versions["gradio"], "python": python}
        (part / "README.md").write_text(card.format(**facts), encoding="utf-8")
        write_sums(part)
    return output


def write_code_digests(folder: Path) -> None:
    """Put a digest of every other code file into the configuration's.

    Raises:
        PublishError: If the configuration's code has no place for them.
    """
    configuration = folder / "configuration_ldvc.py"
    digests = {path.name: code_digest(path) for path in sorted(folder.glob("*.py")) if path != configuration}
    before, place, after = configuration.read_text(encoding="utf-8").partition(NO_DIGESTS)
    if not place:
        raise PublishError(
            f"{configuration.name} has no line {NO_DIGESTS.strip()!r}; publish with the LDVC as it was."
        )
    lines = "".join(f'    "{name}": "{digest}",\n' for name, digest in digests.items())
    filled = NO_DIGESTS.replace("{}", f"{{\n{lines}}}")
    configuration.write_text(before + filled + after, encoding="utf-8")


def write_papers(
    folder: Path, name: str, recipe: Recipe, protocol: Mapping[str, Any], result: Mapping[str, Any], patch_size: int
) -> None:
    """Write card, licence, audit and results.

    Args:
        folder: The folder that is being built.
        name: Title of the card.
        recipe: The run's recipe.
        protocol: Its audit.
        result: Its result.
        patch_size: Pixels per side of a patch.
    """
    content, start = read_words(), settings_of(vars(recipe))["start_from"]  # not the first half of a transductive run
    recipe = Recipe(**_public(vars(recipe) | {"start_from": start}))
    entry = next((card for card in content["cards"] if card["name"] == name), {})
    parts = {"protocol": protocol, "result": result, "num_seeds": 1, "patch_size": patch_size}
    card = make_card(name, recipe, choose_recipe(recipe, entry.get("recipe")), content, entry, **parts)
    text = render_card(card)
    check_card(text)
    (folder / "README.md").write_text(text)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    keys = {**vars(recipe), **recipe.model}  # flat, as train.py reads it
    keys.pop("model")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True))
    for file_name, data in ((PROTOCOL_FILE, protocol), ("results.json", result)):
        (folder / file_name).write_text(json.dumps(_public(data), indent=2) + "\n")


def choose_recipe(recipe: Recipe, path: str | None) -> str:
    """What the card's command names: a recipe of the repository if the run kept to it, else the folder's own."""
    if path and settings_of(vars(read_recipe([str(ROOT / path)]))) == settings_of(vars(recipe)):
        return path
    return RECIPE_FILE


def _public(value: Any) -> Any:
    """Cut absolute paths down to their last name, all through: they tell of the machine, not of the model."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def write_sums(folder: Path) -> None:
    """Write SHA-256, size and whether it is executed of every file: files.json; and SHA256SUMS for `sha256sum`."""
    entries = [describe_file(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    (folder / FILES).write_text(json.dumps({"files": entries}, indent=2) + "\n")
    lines = [f"{entry['sha256']}  {entry['path']}\n" for entry in [*entries, describe_file(folder / FILES, folder)]]
    (folder / SUMS).write_text("".join(lines))


def describe_file(path: Path, folder: Path) -> dict[str, Any]:
    """Hash one file of a folder, and make it readable: weights are written private, which a shared folder is not."""
    path.chmod(0o644)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    return {"path": name, "sha256": digest, "bytes": size, "executed": path.suffix == ".py"}


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a built folder as one commit; returns its address.

    Args:
        folder: From `build_folder`.
        repository: Id on the Hub, "your-name/name".
        private: Make a new repository private.
    """
    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message="LDVC checkpoint, code and card",
        delete_patterns=["*.py", "*.json", "*.safetensors"],  # of an upload before, which the hashes would not cover
    )
    return str(done)


# ---- command line
