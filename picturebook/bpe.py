"""The tiny tokenizer of the picturebook's CLIP: CLIP's own byte-level BPE with about a thousand entries."""

from collections import Counter
from itertools import pairwise

import numpy as np
from tokenizers import Regex, pre_tokenizers
from transformers import CLIPTokenizer

from picturebook.vocabulary import get_world, write_caption


NUM_MERGES = 510  # With 512 byte symbols and the two specials: 1,024 entries.
MAX_TOKENS = 77
BOS_TOKEN, EOS_TOKEN = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""

# Ordinary words, so that text from outside the picturebook falls into syllables and not into single bytes.
PLAIN_ENGLISH = """
Once there was a small page of plain paper, and on the page there was almost nothing. Then someone took a pair of
scissors and began to cut. First came the ground, green or yellow or brown, with a long wavy edge where it met the
water or the wall behind it. Then came the things that stand on the ground: those with wheels, those with wings, those
with leaves, and a few that only shine. Each was cut from paper of another color, red, orange, purple, pink, white,
black or gray, some with stripes and some with dots, and each threw a soft shadow on whatever was under it.

People who look at a picture like this one do not need to be told what is in it. They have seen the same shapes in the
street and in the garden, at the table and in the kitchen, in books and on the wall of a school. A dog, a horse, a
sheep, a cow, an elephant, a bear, a zebra and a giraffe are known by their legs and ears; a chair, a sofa, a bed, a
table and a bench by the way they carry us; a train, a bus, a truck, a bicycle, a motorbike and an airplane by the way
they go. A person with an apple, a banana, a bottle, a bowl, a knife, a fork and a spoon is about to eat. Over all of
them there may be a cloud, a mountain, a bridge, a road, a building, a window, a door, a fence, a floor or a field.

A machine has to learn this from sentences. It is shown many images and many captions, and it is asked again and again
which words belong to which image. After some thousand questions it can tell one thing from another, even when the
thing is large or small, turned to the left or to the right, near the middle or cut off by the border, hidden behind
something else or lying alone in the sun. Nobody ever drew an outline for it. That is the whole idea: the name is known
first, and the outline is found later with the help of the name.
"""


def build_tokenizer(world: str = "plain", num_captions: int = 4000, seed: int = 0) -> CLIPTokenizer:
    """Train the tokenizer on random captions and a page of English.

    Any text is tokenisable, since all 256 bytes are in the vocabulary. As in CLIP, text is lower-cased, words end in
    `</w>`, and padding uses the end token.

    Args:
        world: Vocabulary of the captions.
        num_captions: Captions to learn merges from.
        seed: Choice of the captions.
    """
    rng = np.random.default_rng([11, seed])
    num_classes = len(get_world(world).class_names)
    captions = [
        write_caption(rng.choice(num_classes, int(rng.integers(1, 5)), replace=False).tolist(), rng, world)[0]
        for _ in range(num_captions)
    ]
    merges = _learn_merges([*captions, *[PLAIN_ENGLISH] * 4])
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    entries = [*dict.fromkeys(entries), BOS_TOKEN, EOS_TOKEN]
    return CLIPTokenizer(
        vocab={entry: i for i, entry in enumerate(entries)},
        merges=merges,
        unk_token=EOS_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        model_max_length=MAX_TOKENS,
    )


def _learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Learn the most frequent pairs of symbols, in order; ties go by the alphabet.

    The trainer of `tokenizers` breaks ties differently in every process, and a resumed run must find its own tokens.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(" ".join(text.lower().split())))
    words = {(*word[:-1], f"{word[-1]}</w>"): count for word, count in sorted(counts.items())}
    merges = []
    for _ in range(NUM_MERGES):
        pairs = Counter()
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merge(symbols, best): count for symbols, count in words.items()}
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join every occurrence of a pair of neighbours, from the left."""
    merged = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return tuple(merged)
