"""Build a folder for the Hub from a checkpoint, and push it.

    python publish.py outputs/voc2012_inductive --output hub/ldvc-vit-base-patch16-voc2012-inductive
    python publish.py outputs/voc2012_inductive --output FOLDER --push_to_hub your-name/ldvc-voc2012

The folder has the weights, the code that they need (remote code), processor and tokenizer, recipe, audit and results
of the run, a model card as README.md, the licence, and the SHA-256 of every file: in files.json, where files that a
user's machine executes are marked, and in SHA256SUMS, for `sha256sum --check SHA256SUMS` after a download.

A checkpoint without its audit, without results, or whose audit belongs to another run is refused.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi

from cards_ldvc import CardError, check_card, make_card, read_words, render_card
from ledger_ldvc import LedgerError, differences, load_result, settings_of
from modeling_ldvc import LDVCForSemanticSegmentation
from protocol_ldvc import PROTOCOL_FILE, protocol_mismatches, read_protocol, trained_weights_fingerprint
from recipe_ldvc import Recipe, RecipeError, read_recipe


ROOT = Path(__file__).resolve().parent
SUMS, FILES, RECIPE_FILE = "SHA256SUMS", "files.json", "recipe.yaml"


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
    if "weights_sha256" in result and result["weights_sha256"] != protocol.get("weights_sha256"):
        raise PublishError(f"{results} is of other weights than {folder / PROTOCOL_FILE}; give those of the same run.")
    return recipe, protocol, result


def check_audit(protocol: Mapping[str, Any], recipe: Recipe, model: LDVCForSemanticSegmentation) -> None:
    """Refuse a checkpoint whose audit does not fit its recipe, its configuration or its weights.

    Raises:
        PublishError: Names every mismatch.
    """
    seen_classes, weights = model.config.seen_classes, trained_weights_fingerprint(model)
    findings = protocol_mismatches(protocol, recipe.setting, recipe.get_vocabulary(), seen_classes, weights)
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
        raise PublishError(f"{output} was not built by publish.py (it has no {FILES}); choose another folder.")


def build_folder(checkpoint: Path, output: Path, results: Path | None = None, overwrite: bool = False) -> Path:
    """Build the Hub folder: aside first, then renamed, so that none is half-written.

    Args:
        checkpoint: Output folder of a training run, or an embedded checkpoint.
        output: The folder to make; its name is the card's title.
        results: Result file, if it is not CHECKPOINT/results.json.
        overwrite: Replace a folder that is there.

    Raises:
        PublishError: If the checkpoint cannot be published, or `output` is there already.
        ValueError: If weights are missing.
        OSError: If a file cannot be read or written.
    """
    from evaluate_ldvc import load_checkpoint

    check_output(output, overwrite)
    recipe, protocol, result = read_checkpoint(checkpoint, results)
    model, processor = load_checkpoint(str(checkpoint))
    check_audit(protocol, recipe, model)
    part = output.with_name(output.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.config.clip_name_or_path = _public(model.config.clip_name_or_path)
        model.save_pretrained(part)
        processor.save_pretrained(part)
        write_papers(part, output.name, recipe, protocol, result, model.config.vision_config.patch_size)
        write_sums(part)
        if output.exists():
            shutil.rmtree(output)
        os.replace(part, output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return output


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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; user errors end with one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="output folder of a training run")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; its name is the card's title")
    parser.add_argument("--results", type=Path, help="result file, if it is not in the checkpoint's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="upload to this repository, such as your-name/ldvc-voc2012"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    arguments = parser.parse_args(argv)
    try:
        folder = build_folder(arguments.checkpoint, arguments.output, arguments.results, arguments.overwrite)
        sys.stdout.write(f"built {folder}\n")
        if arguments.push_to_hub:
            sys.stdout.write(f"pushed to {push(folder, arguments.push_to_hub, arguments.private)}\n")
    except (PublishError, CardError, LedgerError, RecipeError, ValueError, TypeError, OSError) as error:
        sys.stderr.write(f"publish: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
