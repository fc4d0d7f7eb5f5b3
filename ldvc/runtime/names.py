"""Class names to embeddings without PyTorch: tokens, the exported text tower, means over synonyms and templates.

Embeddings depend on names, templates and text weights, on no picture: they are kept on disk, a file per list.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ldvc.masks.parts import written_aside
from ldvc.model.options_ldvc import Classes, check_templates, read_classes
from ldvc.runtime.programs import Program
from ldvc.segmenters.exported_folder import ExportedFolder


__all__ = ["NameEncoder", "read_embeds", "read_vocabulary"]

VOCABULARY_CONFIG, VOCABULARY_WEIGHTS = "vocabulary.json", "vocabulary.safetensors"
PROMPTS_PER_PASS = 256  # ten thousand names must not need ten thousand times the memory of one


class NameEncoder:
    """Encodes class names by an exported text tower.

    Args:
        folder: What `ldvc export` wrote.
        export: What it says of itself.
        open_text: Opens the text program; called when names are not at hand yet.
        cache: Folder for embeddings; `None` keeps none.
        prompt_templates: In place of the exported ones.

    Raises:
        ValueError: If a template has not exactly one `{}`.
    """

    def __init__(
        self,
        folder: Path,
        export: ExportedFolder,
        open_text: Callable[[], Program],
        cache: Path | None = None,
        prompt_templates: str | Sequence[str] | None = None,
    ):
        self.folder, self.export, self._open_text, self._cache = folder, export, open_text, cache
        self.templates = check_templates(export.prompt_templates if prompt_templates is None else prompt_templates)

    def encode(self, class_names: Any) -> tuple[list[str], np.ndarray]:
        """Encode class names.

        Args:
            class_names: List of names, or dict of synonyms.

        Returns:
            The names, and their (num_classes, projection_dim) float32 embeddings.

        Raises:
            ValueError: If names are empty, repeated or too long, or there is no text tower.
            TypeError: If they are neither list nor dict, or a name is no string.
        """
        classes = read_classes(class_names)
        if self.export.text_program is None:
            raise ValueError(
                f"{str(self.folder)!r} was exported with a baked vocabulary and no text tower; leave the names "
                "out, or export the checkpoint that it was baked from."
            )
        place = None if self._cache is None else self._cache / f"{self.key(classes)}.npy"
        if place is not None:
            with suppress(OSError, ValueError, EOFError):  # not there, or cut off: made again
                embeds = np.load(place)
                if embeds.shape == (len(classes), self.export.projection_dim):
                    return list(classes), embeds
        embeds = self.encode_prompts(classes)
        if place is not None:
            with suppress(OSError), written_aside(place) as file:  # a full disk costs time the next time, no more
                np.save(file, embeds)
        return list(classes), embeds

    def key(self, classes: Classes) -> str:
        """SHA-256 of all that the embeddings of a list depend on."""
        tokenizer = hashlib.sha256((self.folder / "tokenizer.json").read_bytes()).hexdigest()
        parts = [self.export.source, self.export.kind, tokenizer, self.templates, list(classes.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_prompts(self, classes: Classes) -> np.ndarray:
        """(num_classes, projection_dim) means over the prompts of each class, unit vectors but for CLIPSeg."""
        prompts = [
            (template.replace("{}", " ".join(word.split())), class_id)
            for class_id, words in enumerate(classes.values())
            for word in words
            for template in self.templates
        ]
        rows = tokenize([prompt for prompt, _ in prompts], self.folder, self.export)
        check_told_apart(prompts, rows)
        program, found = self._open_text(), []
        for start in range(0, len(rows), PROMPTS_PER_PASS):
            part = rows[start : start + PROMPTS_PER_PASS]
            longest = max(map(len, part))
            padding = self.export.pad_token_id
            ids = np.array([[*row, *[padding] * (longest - len(row))] for row in part], np.int64)
            mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in part], np.int64)
            found.append(program.run(input_ids=ids, attention_mask=mask))
        embeds = np.concatenate(found).astype(np.float32, copy=False)
        if len(prompts) == len(classes):
            return embeds
        sums = np.zeros((len(classes), embeds.shape[1]), np.float32)
        owners = np.array([class_id for _, class_id in prompts])
        np.add.at(sums, owners, embeds)
        if not self.export.unit_embeds:
            return sums / np.bincount(owners)[:, None].astype(np.float32)
        return sums / np.linalg.norm(sums, axis=-1, keepdims=True)


def tokenize(prompts: Sequence[str], folder: Path, export: ExportedFolder) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        ValueError: If one does not fit the text tower, or holds a token that begins or ends a text.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    begins = list(export.prompt_token_ids or ())
    frame = tokenizer.encode("").ids  # where texts begin and end
    rows = [encoded.ids for encoded in tokenizer.encode_batch(list(prompts))]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > export.max_length:
            raise ValueError(
                f"{prompt[:80]!r} is {len(row)} tokens long, the text tower reads {export.max_length}; shorten it."
            )
        if row[: len(begins)] != begins:
            raise ValueError(
                f"{prompt[:80]!r} does not begin with the words whose places the model's text prompts take; use the "
                f"exported template, {export.prompt_templates[0]!r}."
            )
        if inside := set(frame) & set(row[1:-1]):
            raise ValueError(
                f"{prompt[:80]!r} holds {tokenizer.id_to_token(min(inside))!r}, where a text begins or ends for the "
                "text tower, or a character that the tokenizer does not know; remove it."
            )
    return rows


def check_told_apart(prompts: Sequence[tuple[str, int]], rows: Sequence[Sequence[int]]) -> None:
    """Check that the tokenizer tells classes apart.

    Raises:
        ValueError: If it reads prompts of two classes as the same tokens; their embeddings would be equal.
    """
    first: dict[tuple[int, ...], tuple[str, int]] = {}
    for (prompt, class_id), row in zip(prompts, rows, strict=True):
        other, owner = first.setdefault(tuple(row), (prompt, class_id))
        if owner != class_id:
            raise ValueError(
                f"the tokenizer reads {other!r} and {prompt!r} as the same text, so that two classes would have one "
                "embedding; name one of them otherwise, or make them synonyms of one class."
            )


# ---- vocabularies in files


def read_embeds(folder: Path) -> np.ndarray:
    """(num_classes, projection_dim) embeddings of the exported model's own classes.

    Raises:
        ValueError: If there are none, or the file is damaged.
    """
    if (folder / VOCABULARY_CONFIG).is_file():
        return read_vocabulary(folder)[1]
    if not (folder / "class_embeds.npy").is_file():
        raise ValueError("the call names no classes and there is no vocabulary beside the program; name the classes.")
    return np.load(folder / "class_embeds.npy").astype(np.float32, copy=False)


def read_vocabulary(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Read what `LDVCVocabulary.save` wrote: its fields, and (num_classes, projection_dim) embeddings.

    Raises:
        FileNotFoundError: If the folder holds no vocabulary.
        ValueError: If a file is truncated, altered, or of another save than its partner.
    """
    for name in (VOCABULARY_WEIGHTS, VOCABULARY_CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give a folder written by `LDVCVocabulary.save`.")
    weights = (folder / VOCABULARY_WEIGHTS).read_bytes()
    try:
        content: dict[str, Any] = dict(json.loads((folder / VOCABULARY_CONFIG).read_bytes()))
        said = content.pop("sha256", None)
        is_whole = said == hashlib.sha256(weights + json.dumps(content, sort_keys=True).encode()).hexdigest()
        embeds = read_tensor(weights, "class_embeds") if is_whole else None
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise ValueError(f"the vocabulary in {folder} is damaged ({error}); save it again.") from error
    if embeds is None:
        raise ValueError(f"the vocabulary in {folder} was altered, cut off or is of two saves; save it again.")
    return content, embeds


def read_tensor(content: bytes, name: str) -> np.ndarray:
    """A float32 tensor of a safetensors file: eight bytes of length, a JSON header, the numbers."""
    (length,) = struct.unpack_from("<Q", content)
    entry: Mapping[str, Any] = json.loads(content[8 : 8 + length])[name]
    first, last = entry["data_offsets"]
    return np.frombuffer(content[8 + length + first : 8 + length + last], np.dtype("<f4")).reshape(entry["shape"])
