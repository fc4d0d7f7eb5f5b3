# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Class vocabularies: names with their embeddings, in a file, as the model's default, or baked into its checkpoint.

Class embeddings depend on names, templates and text weights, on no image, so that they are computed once and kept.
What is kept serves only the names and text weights it was made with; when either changes, it is made again.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .compat_ldvc import causal_mask
from .dense_ldvc import block_at
from .processing_ldvc import Classes, LDVCProcessor, check_distinct, check_templates, name_key, read_classes
from .weights_ldvc import text_fingerprint, text_function, text_modules, write_files


VOCABULARY_WEIGHTS = "vocabulary.safetensors"
VOCABULARY_CONFIG = "vocabulary.json"
FORMAT_VERSION = 1
SAMPLES_PER_WEIGHT = 64  # of CLIP, to notice changes that have no version
LENGTH_TOLERANCE = 0.01  # bfloat16 rounds a unit vector's length by up to 0.4 %
# Ten thousand class names must not need ten thousand times the memory of one: ViT-B/16's tower, under 1 GB.
PROMPTS_PER_PASS = 1024


def check_tensors(**arguments: Any) -> None:
    """Check that each argument is a tensor or `None`.

    Raises:
        TypeError: If one is something else.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(
                f"`{name}` is a {type(value).__name__}, not a tensor; call the processor with return_tensors='pt', or "
                "make a tensor of it."
            )


# ---- a vocabulary and its files


@dataclass(frozen=True, eq=False, repr=False)
class LDVCVocabulary:
    """Class names, encoded: made by a model's `encode_vocabulary`, used by its `set_vocabulary`.

    Attributes:
        class_names: The names, in the order of the class axis.
        class_embeds: (num_classes, projection_dim), unit length, float32 on the CPU; row i is name i.
        fingerprint: `text_fingerprint` of the model that encoded the names; any other model refuses them.
        class_token_ids: Token ids of each prompt, from which the embeddings are made again when weights change.
        prompt_class_ids: Class of each prompt, where a class has several; `None` is one prompt per class.
        prompt_templates: The templates that the names were put into.
        synonyms: The words of each class, where the names were given with synonyms.
        other_label: Name of what is no class, see `set_vocabulary`.

    Raises:
        ValueError: If names are empty or repeated, counts differ, or the embeddings are no finite unit vectors.
        TypeError: If a name is no string.

    Example:
    ```python
    >>> vocabulary = model.encode_vocabulary({"sofa": ["sofa", "couch"], "cat": ["cat"]}, processor)
    >>> vocabulary.save("living_room")
    >>> model.set_vocabulary(LDVCVocabulary.load("living_room"))  # encodes no text
    >>> logits = model(pixel_values).logits
    ```
    """

    class_names: list[str]
    class_embeds: Tensor
    fingerprint: str
    class_token_ids: list[list[int]]
    prompt_class_ids: list[int] | None
    prompt_templates: list[str]
    synonyms: Classes | None = None
    other_label: str | None = None

    def __post_init__(self):
        classes = read_classes(self.class_names if self.synonyms is None else self.synonyms)
        if list(classes) != self.class_names or self.synonyms not in (None, classes):
            raise ValueError(
                f"`class_names` is {self.class_names!r:.100} and `synonyms` {self.synonyms!r:.100}; give a list of "
                "names, and a dict with a list of words for each of them in the same order."
            )
        check_other_label(classes, self.other_label)
        check_templates(self.prompt_templates)
        if not isinstance(self.fingerprint, str) or not re.fullmatch("[0-9a-f]{64}", self.fingerprint):
            raise ValueError(f"`fingerprint` is {self.fingerprint!r:.100}; it must be the 64 hex digits of a SHA-256.")
        _check_token_rows(self.class_token_ids, self.prompt_class_ids, len(classes))
        _check_embeds(self.class_embeds, self.class_names)
        object.__setattr__(self, "class_embeds", self.class_embeds.detach().to("cpu", torch.float32).contiguous())

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
        return f"LDVCVocabulary({len(self.class_names)} classes: {names}; text weights {self.fingerprint[:16]}...)"

    def save(self, folder: str | os.PathLike) -> None:
        """Write `vocabulary.safetensors` and `vocabulary.json`; written aside and renamed, so never half a file."""
        content = {"format_version": FORMAT_VERSION, **vars(self)}
        weights = save({"class_embeds": content.pop("class_embeds")}, metadata={"format": "pt"})
        content["sha256"] = _digest(weights, content)
        lines = [f'  "{field}": {json.dumps(value, ensure_ascii=False)}' for field, value in content.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"  # a line per field, not per token id
        write_files(folder, {VOCABULARY_WEIGHTS: weights, VOCABULARY_CONFIG: text.encode()})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "LDVCVocabulary":
        """Load what `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no vocabulary.
            ValueError: If a file is truncated, altered, of another format, or of another save than its partner.
        """
        for name in (VOCABULARY_WEIGHTS, VOCABULARY_CONFIG):
            if not Path(folder, name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}; give a folder written by `LDVCVocabulary.save`.")
        weights = Path(folder, VOCABULARY_WEIGHTS).read_bytes()
        try:
            content = dict(json.loads(Path(folder, VOCABULARY_CONFIG).read_bytes()))
        except (ValueError, TypeError, RecursionError) as error:  # cut off, no mapping, nested without end
            raise ValueError(f"{VOCABULARY_CONFIG} in {folder} is damaged ({error}); save it again.") from error
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise ValueError(
                f"the vocabulary in {folder} has the format version {version!r:.20}, not {FORMAT_VERSION}; save it "
                "again, or update LDVC."
            )
        if content.pop("sha256", None) != _digest(weights, content):
            raise ValueError(
                f"{VOCABULARY_WEIGHTS} and {VOCABULARY_CONFIG} in {folder} were altered, cut off or come from two "
                "saves; save the vocabulary again."
            )
        del content["format_version"]
        try:
            return cls(**content, **load(weights))
        except (ValueError, TypeError, SafetensorError) as error:
            raise ValueError(f"the vocabulary in {folder} is not valid: {error}") from error


def _digest(weights: bytes, content: Mapping[str, Any]) -> str:
    """SHA-256 over both files of a vocabulary: either of them altered, or another save's, is noticed."""
    return hashlib.sha256(weights + json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_other_label(classes: Classes, other_label: str | None) -> None:
    """Check that the name of what is no class is a name, and none of a class's own.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is empty, holds control characters, or is a class's name or synonym.
    """
    if other_label is not None:
        check_distinct([*classes, other_label])
        check_distinct([*(word for words in classes.values() for word in words), other_label])


def _check_token_rows(rows: list[list[int]], class_ids: list[int] | None, num_classes: int) -> None:
    """Check that there are token ids for each class.

    Raises:
        ValueError: If not.
    """
    if not isinstance(rows, list) or not all(row and _are_ids(row) for row in rows):
        raise ValueError(f"`class_token_ids` is {rows!r:.100}; it must be lists of token ids, one per prompt.")
    owners = list(range(len(rows))) if class_ids is None else class_ids
    if not _are_ids(owners) or len(owners) != len(rows) or set(owners) != set(range(num_classes)):
        raise ValueError(
            f"`prompt_class_ids` is {class_ids!r:.100} for {len(rows)} prompts; it must name the class of each, 0 to "
            f"{num_classes - 1}, or be None for one prompt per class."
        )


def _are_ids(values: Any) -> bool:
    """Whether this is a list of ids: whole numbers from 0 that a tensor can hold."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**31 for value in values)


def _check_embeds(embeds: Tensor, class_names: list[str]) -> None:
    """Check that there is one finite unit vector per class.

    Raises:
        ValueError: If not; names the first class that has none.
    """
    is_table = isinstance(embeds, Tensor) and embeds.dim() == 2 and embeds.is_floating_point()
    if not is_table or len(embeds) != len(class_names):
        shape = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise ValueError(
            f"`class_embeds` is {shape}; it must be ({len(class_names)}, projection_dim), a row per name."
        )
    lengths = embeds.detach().float().norm(dim=-1)
    is_wrong = ~((lengths - 1).abs() < LENGTH_TOLERANCE)  # true for NaN and infinity too
    if is_wrong.any():
        index = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"the embedding of {class_names[index]!r} has the length {lengths[index].item():.3g}, not 1; use those of "
            "the model's `encode_vocabulary`."
        )


# ---- the vocabulary of a model


class LDVCBakedVocabulary(nn.Module):
    """Class embeddings of the default vocabulary, stored in the checkpoint in place of the text tower."""

    def __init__(self, num_classes: int, projection_dim: int):
        super().__init__()
        self.register_buffer("class_embeds", torch.empty(num_classes, projection_dim))

    def forward(self) -> Tensor:
        """Return the (num_classes, projection_dim) embeddings, unit length."""
        return self.class_embeds


@dataclass(frozen=True)
class DefaultVocabulary:
    """A model's default vocabulary at one moment, of which a question is asked: its names and scores stay together.

    Attributes:
        class_names: In the order of the class axis.
        class_token_ids: Token ids of each prompt.
        prompt_class_ids: Class of each prompt, or `None` for one prompt per class.
        other_label: Name of what is no class.
        class_embeds: (num_classes, projection_dim), where they are baked in.
    """

    class_names: tuple[str, ...]
    class_token_ids: tuple[tuple[int, ...], ...]
    prompt_class_ids: tuple[int, ...] | None
    other_label: str | None
    class_embeds: Tensor | None = field(default=None, compare=False)


class LDVCVocabularyMixin:
    """Where a call's classes come from: its prompts, its embeddings, or the default vocabulary, kept or baked in."""

    baked_vocabulary: LDVCBakedVocabulary | None
    _cached_vocabulary: tuple[tuple, Tensor] | None = None  # what the kept embeddings depend on, and they themselves

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model starts without kept embeddings: their key holds places of these very weights."""
        return {**super().__getstate__(), "_cached_vocabulary": None}

    def get_class_embeds(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_class_ids: Tensor | None = None
    ) -> Tensor:
        """Encode class prompts; independent of any image, so the result can be kept.

        Encoding stops at the longest name: the tower is causal, so what follows the end token has no effect.

        Args:
            input_ids: (num_prompts, sequence_length) token ids, padded on the right.
            attention_mask: (num_prompts, sequence_length); only checked, since right padding has no effect.
            prompt_class_ids: (num_prompts,) class of each prompt; prompts of one class (synonyms, templates) are
                averaged as unit vectors. `None` is one prompt per class.

        Returns:
            (num_classes, projection_dim), unit length.

        Raises:
            ValueError: If the text tower was left out, ids have a wrong shape or value, are padded on the left, have
                no end token, or do not begin with the template's words while text prompts are on.
            TypeError: If an argument is no tensor.
        """
        check_tensors(input_ids=input_ids, attention_mask=attention_mask, prompt_class_ids=prompt_class_ids)
        if prompt_class_ids is not None and prompt_class_ids.shape != input_ids.shape[:1]:
            raise ValueError(
                f"`prompt_class_ids` has shape {tuple(prompt_class_ids.shape)} for `input_ids` of shape "
                f"{tuple(input_ids.shape)}; it names the class of each prompt, as the processor returns it."
            )
        if self.baked_vocabulary is not None:
            raise ValueError(
                f"this checkpoint has a baked vocabulary ({self.config.num_default_classes} names) and no text tower; "
                "leave `input_ids` out, or load the checkpoint it was baked from."
            )
        end_positions = self._check_prompts(input_ids, attention_mask)
        if not torch.compiler.is_compiling():
            input_ids = input_ids[:, : int(end_positions.max()) + 1]
        size = input_ids.shape[0] if torch.compiler.is_compiling() else PROMPTS_PER_PASS
        end_states = [
            self._encode_text(rows, ends)
            for rows, ends in zip(input_ids.split(size), end_positions.split(size), strict=True)
        ]
        embeds = F.normalize(self.clip.text_projection(torch.cat(end_states)), dim=-1)
        if prompt_class_ids is not None:
            sums = embeds.new_zeros(int(prompt_class_ids.max()) + 1, embeds.shape[-1])
            embeds = F.normalize(sums.index_add(0, prompt_class_ids.to(embeds.device), embeds), dim=-1)
        return embeds

    def _encode_text(self, input_ids: Tensor, end_positions: Tensor) -> Tensor:
        """Run the prompted text tower: (num_prompts, hidden_size) of the end tokens, after the final norm."""
        text_model, prompts = self.clip.text_model, self.text_prompts
        token_embeds = text_model.embeddings.token_embedding(input_ids)
        if prompts is not None:
            token_embeds = prompts(token_embeds, 0)
        hidden_states = text_model.embeddings(inputs_embeds=token_embeds)
        mask = causal_mask(text_model.config, hidden_states)
        blocks = text_model.encoder.layers
        for layer, block in enumerate(blocks):
            if prompts is not None and 0 < layer < prompts.depth:
                hidden_states = prompts(hidden_states, layer)
            if layer < len(blocks) - 1:
                hidden_states = block(hidden_states, mask, is_causal=True)
        return text_model.final_layer_norm(block_at(blocks[-1], hidden_states, end_positions)[:, 0])

    @torch.no_grad()
    def encode_vocabulary(
        self, class_names: list[str] | Classes, processor: LDVCProcessor, other_label: str | None = None
    ) -> LDVCVocabulary:
        """Encode class names once, to be kept in a file and set as the default of any model with these text weights.

        Args:
            class_names: `list[str]`, or a dict of synonyms as in [`LDVCProcessor`]; the order is the class axis.
            processor: The checkpoint's [`LDVCProcessor`], whose templates are used.
            other_label: See `set_vocabulary`.

        Returns:
            [`LDVCVocabulary`], whose `class_embeds` are (num_classes, projection_dim).

        Raises:
            ValueError: As `set_vocabulary`.
            TypeError: If a name is no string.
        """
        prompts = self._read_vocabulary(class_names, processor, other_label)
        embeds = self._encode_rows(prompts["class_token_ids"], prompts["prompt_class_ids"])
        return LDVCVocabulary(**prompts, class_embeds=embeds, fingerprint=text_fingerprint(self))

    def set_vocabulary(
        self,
        class_names: list[str] | Classes | LDVCVocabulary | str | os.PathLike,
        processor: LDVCProcessor | None = None,
        bake: bool = False,
        other_label: str | None = None,
    ) -> None:
        """Make these names the default vocabulary, used by calls without class inputs and saved with the checkpoint.

        Args:
            class_names: `list[str]`, or a dict of synonyms as in [`LDVCProcessor`]; the order is the class axis. Or,
                without a processor, an [`LDVCVocabulary`] or the folder of one, so that no text is encoded.
            processor: The checkpoint's [`LDVCProcessor`], whose templates are used.
            bake: Store the embeddings in the checkpoint and drop the text tower: smaller and faster to load, but other
                names must then come as an [`LDVCVocabulary`] that was encoded before.
            other_label: A name for what is no class, such as "other": `id2label` gets it one past the last class, the
                id that post-processing gives to pixels below its `threshold`. It has no channel in the logits.

        Raises:
            ValueError: If names are empty, repeated or given per image, the processor's template is not the one of the
                text prompts, the vocabulary belongs to other text weights, or names come to a model whose vocabulary
                is baked in; the model is then unchanged.
            TypeError: If a name is no string.
            FileNotFoundError: If a folder holds no vocabulary.
        """
        if processor is None or hasattr(class_names, "fingerprint"):
            vocabulary = self._open_vocabulary(class_names, other_label)
        else:
            vocabulary = self.encode_vocabulary(class_names, processor, other_label) if bake else None
        prompts = vars(vocabulary) if vocabulary else self._read_vocabulary(class_names, processor, other_label)
        names = list(prompts["class_names"])
        called = names if prompts["other_label"] is None else [*names, prompts["other_label"]]
        fields = {name: prompts[name] for name in ("class_token_ids", "prompt_class_ids", "other_label")}
        fields |= {"vocabulary_names": names, "vocabulary_templates": list(prompts["prompt_templates"])}
        fields |= {"id2label": dict(enumerate(called)), "label2id": {name: index for index, name in enumerate(called)}}
        # All at once, so that no other thread sees the names of one vocabulary and the tokens of another.
        vars(self.config).update(fields)
        if vocabulary is not None:
            self._keep_vocabulary(vocabulary, bake)

    def _read_vocabulary(
        self, class_names: list[str] | Classes, processor: LDVCProcessor, other_label: str | None
    ) -> dict[str, Any]:
        """Check and tokenise names: the fields of [`LDVCVocabulary`] but the embeddings and their fingerprint.

        Raises:
            ValueError: See `set_vocabulary`.
        """
        if self.baked_vocabulary is not None:
            raise ValueError(
                "this checkpoint has a baked vocabulary and no text tower to encode other names with; load the "
                "checkpoint it was baked from, or set an LDVCVocabulary that was encoded with it."
            )
        encoded = processor(class_names=class_names, return_tensors="pt").to(self._input_device)
        if "class_index" in encoded:
            raise ValueError(
                f"`class_names` {class_names!r} is a list per image; a default vocabulary is one list, or one dict of "
                "synonyms, for all images."
            )
        classes = read_classes(class_names)
        check_other_label(classes, other_label)
        self._check_prompts(encoded["input_ids"], encoded["attention_mask"])
        lengths = encoded["attention_mask"].sum(-1).tolist()
        return {
            "class_names": list(classes),
            "class_token_ids": [ids[:end] for ids, end in zip(encoded["input_ids"].tolist(), lengths, strict=True)],
            "prompt_class_ids": encoded["prompt_class_ids"].tolist() if "prompt_class_ids" in encoded else None,
            "prompt_templates": list(processor.prompt_templates),
            "synonyms": classes if isinstance(class_names, Mapping) else None,
            "other_label": other_label,
        }

    def _open_vocabulary(self, vocabulary: Any, other_label: str | None) -> LDVCVocabulary:
        """Check that an encoded vocabulary, given or in a folder, belongs to this model's text weights.

        Raises:
            ValueError: If not, naming both fingerprints, or if it is no encoded vocabulary.
        """
        if isinstance(vocabulary, str | os.PathLike):
            vocabulary = LDVCVocabulary.load(vocabulary)
        elif not hasattr(vocabulary, "fingerprint"):  # the class itself may come from another copy of this file
            raise ValueError(
                f"`class_names` is {vocabulary!r:.100} and there is no `processor`; names need the checkpoint's "
                "processor, only an LDVCVocabulary or its folder comes alone."
            )
        is_baked = self.baked_vocabulary is not None
        fingerprint = self.config.text_fingerprint if is_baked else text_fingerprint(self)
        if vocabulary.fingerprint != fingerprint:
            held = "this checkpoint was baked from" if is_baked else f"this model holds, in {self.dtype},"
            raise ValueError(
                f"the vocabulary was encoded with the text weights {vocabulary.fingerprint[:16]}..., but "
                f"{held} {str(fingerprint)[:16]}...; encode its names with model.encode_vocabulary of the checkpoint "
                "that is to use it, in the dtype it is loaded in."
            )
        if vocabulary.class_embeds.shape[1] != self.config.projection_dim:
            raise ValueError(
                f"the vocabulary's embeddings are {vocabulary.class_embeds.shape[1]} wide, this model's "
                f"{self.config.projection_dim}; use those of the model's `encode_vocabulary`."
            )
        self._check_prompts(self._pad_rows(vocabulary.class_token_ids))
        return vocabulary if other_label is None else dataclasses.replace(vocabulary, other_label=other_label)

    def _keep_vocabulary(self, vocabulary: LDVCVocabulary, bake: bool) -> None:
        """Bake the embeddings of a vocabulary that was just set, or keep them for as long as nothing changes."""
        embeds = vocabulary.class_embeds.to(self._input_device, self.dtype, copy=True)
        if bake and self.baked_vocabulary is None:
            self.config.baked_vocabulary = True
            self.config.text_fingerprint = vocabulary.fingerprint
            self._drop_text_tower()
        if self.baked_vocabulary is not None:
            self.baked_vocabulary.class_embeds = embeds
        elif (state := self._vocabulary_state()) is not None:
            self._cached_vocabulary = ((self.default_vocabulary(), state), embeds)

    def _drop_text_tower(self) -> None:
        """Put a table of class embeddings in the place of the text tower."""
        self.baked_vocabulary = LDVCBakedVocabulary(self.config.num_default_classes, self.config.projection_dim)
        self.clip.text_model = self.clip.text_projection = self.text_prompts = None

    @property
    def _input_device(self) -> torch.device:
        """Where class inputs are made; the model's own `device` is "meta" under offload."""
        return self.device if self.device.type != "meta" else torch.device("cpu")

    def _check_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Check token ids and return the (num_prompts,) positions of their end tokens.

        Raises:
            ValueError: See `get_class_embeds`.
        """
        if not torch.compiler.is_compiling():
            self._check_token_ids(input_ids)
        end_token = self.config.text_config.eos_token_id
        # Published CLIP configurations carry 2, which means "the highest id", see CLIPTextModel.
        is_end = input_ids == (input_ids.amax(-1, keepdim=True) if end_token == 2 else end_token)
        if not torch.compiler.is_compiling():
            if attention_mask is not None and not attention_mask[:, 0].all():
                raise ValueError("`input_ids` are padded on the left; pad on the right (padding_side='right').")
            if not is_end.any(-1).all():
                raise ValueError(
                    f"row {int((~is_end.any(-1)).nonzero()[0])} of `input_ids` has no end token ({end_token}); "
                    "tokenise with the checkpoint's own tokenizer and its special tokens."
                )
            words = self.config.prompt_token_ids
            if self.text_prompts is not None and words:
                begins = input_ids[:, : len(words)]
                if begins.shape[1] < len(words) or (begins != begins.new_tensor(words)).any():
                    raise ValueError(
                        "`input_ids` do not begin with the words of the template "
                        f"{self.config.prompt_template!r}, whose positions the text prompts replace; pass class names "
                        "to the processor with this template, or use a model with num_text_prompts=0."
                    )
        return is_end.int().argmax(-1)

    def _check_token_ids(self, input_ids: Tensor) -> None:
        """Check shape and range of token ids.

        Raises:
            ValueError: If one is wrong.
        """
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise ValueError(
                f"`input_ids` has shape {tuple(input_ids.shape)}; it must be (num_prompts, sequence_length), with at "
                "least one of each."
            )
        vocab_size, longest = self.config.text_config.vocab_size, self.config.text_config.max_position_embeddings
        highest = int(input_ids.max())
        if highest >= vocab_size:
            raise ValueError(
                f"`input_ids` holds the id {highest}, but the text tower knows {vocab_size} ids; tokenise with the "
                "checkpoint's own tokenizer."
            )
        if input_ids.shape[1] > longest:
            raise ValueError(
                f"`input_ids` is {input_ids.shape[1]} tokens long, the text tower reads {longest}; shorten the names."
            )

    def _resolve_classes(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        prompt_class_ids: Tensor | None,
        class_embeds: Tensor | None,
        class_mask: Tensor | None,
        class_index: Tensor | None,
        seen_class_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Turn the call's one source of classes into embeddings, and say which of them trained with masks.

        Returns:
            (1 or batch_size, num_classes, projection_dim) embeddings, and the mask of the call, or that of the default
            vocabulary, or `None`.

        Raises:
            ValueError: If there are two sources, or the embeddings have the wrong shape.
        """
        if input_ids is not None and class_embeds is not None:
            raise ValueError("`input_ids` and `class_embeds` both name the classes; give one of them.")
        if input_ids is not None and input_ids.dim() == 3:
            is_padded = class_index is None and class_mask is not None and class_mask.shape == input_ids.shape[:2]
            own_mask = class_mask if is_padded else None
            class_embeds = self._encode_lists(input_ids, attention_mask, prompt_class_ids, own_mask)
        elif input_ids is not None:
            class_embeds = self.get_class_embeds(input_ids, attention_mask, prompt_class_ids)
        elif class_embeds is None:
            vocabulary = self.default_vocabulary()  # once, since another thread may set another
            class_embeds = self.vocabulary_embeds(vocabulary)
            if seen_class_mask is None:
                seen_class_mask = self.seen_class_mask(vocabulary.class_names, class_index)
        width = self.config.projection_dim
        if class_embeds.dim() not in (2, 3) or class_embeds.shape[-1] != width or class_embeds.shape[-2] == 0:
            raise ValueError(
                f"class embeddings have shape {tuple(class_embeds.shape)}; they must be (num_classes, {width}) or "
                f"(batch_size, num_classes, {width}), from this model's `get_class_embeds`."
            )
        if class_index is not None:
            if class_embeds.dim() == 2:
                return class_embeds[class_index], seen_class_mask
            return class_embeds.gather(1, class_index[..., None].expand(-1, -1, width)), seen_class_mask
        return class_embeds if class_embeds.dim() == 3 else class_embeds.unsqueeze(0), seen_class_mask

    def _encode_lists(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        prompt_class_ids: Tensor | None,
        class_mask: Tensor | None,
    ) -> Tensor:
        """Encode prompts per image, as a data loader stacks them: (batch_size, num_classes, projection_dim).

        Args:
            input_ids: (batch_size, num_prompts, sequence_length).
            attention_mask: Shaped as `input_ids`.
            prompt_class_ids: (batch_size, num_prompts) class of each, where a class has several.
            class_mask: (batch_size, num_prompts), 0 for rows of padding, which need be no prompts.

        Raises:
            ValueError: If classes of several prompts differ in number between images.
        """
        batch_size, num_classes = input_ids.shape[:2]
        if class_mask is not None:
            is_class = class_mask.to(input_ids.device).bool()[..., None]
            input_ids = torch.where(is_class, input_ids, input_ids[:, :1])
            if attention_mask is not None:
                attention_mask = torch.where(is_class, attention_mask, attention_mask[:, :1])
        if prompt_class_ids is not None and prompt_class_ids.shape == input_ids.shape[:2]:
            counts = (prompt_class_ids.amax(1) + 1).tolist()
            if len(set(counts)) > 1:
                raise ValueError(
                    f"`prompt_class_ids` names {counts} classes of the images; lists of different lengths go to the "
                    "processor in one call, class_names=[[...], [...]], which pads them."
                )
            num_classes = counts[0]
            firsts = torch.arange(batch_size, device=prompt_class_ids.device) * num_classes
            prompt_class_ids = (prompt_class_ids + firsts[:, None]).flatten()
        attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        embeds = self.get_class_embeds(input_ids.flatten(0, 1), attention_mask, prompt_class_ids)
        return embeds.unflatten(0, (batch_size, num_classes))

    def default_vocabulary(self) -> DefaultVocabulary:
        """The default vocabulary as it is now; it stays as it is whatever is set later, also in another thread.

        Raises:
            ValueError: If there is none, or `id2label` calls a class by the name of another.
        """
        is_compiling = torch.compiler.is_compiling()
        now = self.config if is_compiling else SimpleNamespace(**vars(self.config))  # copied in one step
        if now.class_token_ids is None:
            raise ValueError(
                "the call names no classes and the checkpoint has no default vocabulary; pass `class_names` to the "
                "processor (to a pipeline `candidate_labels`), or call model.set_vocabulary(class_names, processor) "
                "first."
            )
        if not is_compiling:
            self.config.check_names()
        return DefaultVocabulary(
            class_names=tuple(now.vocabulary_names),
            class_token_ids=tuple(map(tuple, now.class_token_ids)),
            prompt_class_ids=None if now.prompt_class_ids is None else tuple(now.prompt_class_ids),
            other_label=now.other_label,
            class_embeds=None if self.baked_vocabulary is None else self.baked_vocabulary(),
        )

    def vocabulary_embeds(self, vocabulary: DefaultVocabulary) -> Tensor:
        """Embeddings of a default vocabulary, (num_classes, projection_dim), computed once while nothing changes."""
        if vocabulary.class_embeds is not None:
            return vocabulary.class_embeds
        is_kept = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        state = self._vocabulary_state() if is_kept else None
        kept = self._cached_vocabulary  # once, since another thread may put its own there
        if state is not None and kept is not None and kept[0] == (vocabulary, state):
            return kept[1]
        embeds = self._encode_rows(vocabulary.class_token_ids, vocabulary.prompt_class_ids)
        self._cached_vocabulary = ((vocabulary, state), embeds) if state is not None else None
        return embeds

    def _default_class_embeds(self) -> Tensor:
        """Embeddings of the default vocabulary, (num_classes, projection_dim)."""
        return self.vocabulary_embeds(self.default_vocabulary())

    def _pad_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids of several lengths as one (num_prompts, sequence_length) tensor, filled up with end tokens."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *row[-1:] * (longest - len(row))] for row in rows], device=self._input_device)

    def _encode_rows(self, rows: Sequence[Sequence[int]], class_ids: Sequence[int] | None) -> Tensor:
        """Embeddings of token rows, (num_classes, projection_dim)."""
        class_ids = None if class_ids is None else torch.tensor(class_ids, device=self._input_device)
        return self.get_class_embeds(self._pad_rows(rows), prompt_class_ids=class_ids)

    def _vocabulary_state(self) -> tuple | None:
        """What kept embeddings depend on beside the names: what the text tower computes, and with which weights.

        Weights count by place and version, those of the prompts by value. `None` where it cannot be known: see
        `text_function`; or where weights cannot be compared, away by offloading, quantised, or without versions
        (inference tensors). A write through `.data` changes no version; samples of every weight notice it, unless it
        is to single numbers.
        """
        function = text_function(self)
        modules = text_modules(self).values() if function is not None else ()
        weights = [w for module in modules for w in (*module._parameters.values(), *module._buffers.values())]
        weights = [weight for weight in weights if weight is not None]
        if not weights or any(type(w) not in (nn.Parameter, Tensor) or w.is_meta or w.is_inference() for w in weights):
            return None
        # An address alone would be given to another tensor once this one is freed; a weak reference holds it.
        places = tuple((StorageWeakRef(w.untyped_storage()), w.data_ptr(), w._version, w.dtype) for w in weights)
        samples = [w.detach().flatten()[:: max(1, w.numel() // SAMPLES_PER_WEIGHT)].float().sum() for w in weights]
        samples = torch.stack(samples).cpu().numpy().tobytes()
        prompts = None if self.text_prompts is None else self.text_prompts.tokens.detach()
        prompt_values = None if prompts is None else prompts.float().cpu().numpy().tobytes()
        device = self._input_device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return function, places, samples, prompt_values, autocast

    def seen_class_mask(
        self, class_names: Sequence[str] | Classes, class_index: Tensor | None = None
    ) -> Tensor | None:
        """Tell by name which classes trained with masks, for the argument `seen_class_mask` of a call.

        Args:
            class_names: List of names, or dict of synonyms, of which one is enough; case and spaces do not count.
            class_index: (batch_size, num_classes) rows of them that make up each image's list, or `None`.

        Returns:
            (num_classes,) bool, or as `class_index`, or `None` where the checkpoint does not say what it trained on.
        """
        if not self.config.seen_classes:
            return None
        seen = {name_key(name) for name in self.config.seen_classes}
        if isinstance(class_names, Mapping):
            classes = [(name, *words) for name, words in read_classes(class_names).items()]
        else:
            classes = [(name,) for name in class_names]
        mask = torch.tensor([any(name_key(word) in seen for word in words) for words in classes])
        return mask if class_index is None else mask.to(class_index.device)[class_index]


__all__ = ["LDVCBakedVocabulary", "LDVCVocabulary", "LDVCVocabularyMixin", "check_tensors", "text_fingerprint"]
