"""The byte-level BPE tokenizer of CLIP, trained on the world's captions.

The vocabulary is ordered as CLIP's: 256 byte symbols, the same 256 with `</w>`, one entry per merge, then the two
special tokens. So every string of any script has a spelling in it.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from efface.miniature.captions import corpus

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
VOCABULARY = 1400
# How CLIP cuts text into words before it merges bytes.
WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def learn_merges(lines: list[str], vocabulary: int) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding learns from `lines`, at most as many as `vocabulary` leaves room for."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Equally frequent pairs are merged in the order of their numbers; the trainer would number the `</w>` symbols
    # as it meets them, in another order at every run, were they not numbered first.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        special_tokens=[letter + "</w>" for letter in letters],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    return [(first, second) for first, second in json.loads(learner.to_str())["model"]["merges"]]


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the tokenizer, write it to `folder` (vocab.json, merges.txt and the rest) and load it from there."""
    merges = learn_merges(corpus(), VOCABULARY)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": END}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH, **special)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
    return CLIPTokenizer.from_pretrained(folder)
