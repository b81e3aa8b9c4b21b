"""Tokenizers: trained on the corpus by a deterministic procedure, or loaded by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from growbench.errors import UsageError, reason

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Kind = Literal["wordpiece", "bytes"]
SMALLEST = {"wordpiece": 32, "bytes": 258}  # 256 bytes, <|endoftext|> and <mask>
WORDPIECE_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST_WORD = 10_000  # characters in the sample
LONG_WORD = re.compile(rf"\w{{{LONGEST_WORD}}}(?=\w)|[^\w\s]{{{LONGEST_WORD}}}(?=[^\w\s])")
CHARACTERS = 1000  # BERT's limit: rarer characters become [UNK]


@dataclass(frozen=True)
class Vocabulary:
    """The token ids of a tokenizer that batches need."""

    size: int
    start: int  # first token of a masked model's row: [CLS]
    separator: int  # after every document, and last token of a masked model's row: [SEP], <|endoftext|>
    mask: int | None  # None for causal models
    special: list[int]  # never masked, never a random replacement


def train(kind: Kind, size: int, masked: bool, sample: list[str]) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer of at most `size` tokens (fewer if the sample is too small). Equal samples give equal tokenizers."""
    sample = [_with_shorter_words(text) for text in sample]
    if kind == "wordpiece":
        tokenizer = _train_wordpiece(size, sample)
        start, separator, mask = "[CLS]", "[SEP]", "[MASK]"
    else:
        tokenizer = _train_bytes(size, masked, sample)
        start = separator = "<|endoftext|>"
        mask = "<mask>"
    special = sorted(tokenizer.get_added_tokens_decoder())
    ids = tokenizer.get_vocab()
    return tokenizer, Vocabulary(len(ids), ids[start], ids[separator], ids[mask] if masked else None, special)


def _with_shorter_words(text: str) -> str:
    """The text with spaces in words of more than `LONGEST_WORD` characters: training takes the square of a word's length."""
    return text if len(text) <= LONGEST_WORD else LONG_WORD.sub(r"\g<0> ", text)


def _train_bytes(size: int, masked: bool, sample: list[str]) -> Tokenizer:
    """As GPT-2's: byte-level byte-pair encoding without normalisation, so that decoding restores the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<mask>"] if masked else ["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def _train_wordpiece(size: int, sample: list[str]) -> Tokenizer:
    """As BERT's: lower case, no accents, words split into pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def tokenizer(model: models.WordPiece) -> Tokenizer:
        new = Tokenizer(model)
        new.normalizer = normalizers.BertNormalizer(lowercase=True)
        new.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        new.decoder = decoders.WordPiece()
        return new

    draft = tokenizer(models.WordPiece(unk_token="[UNK]"))
    characters = _frequent_characters(draft, sample, min(CHARACTERS, size // 4))
    # The trainer would number characters inside words in the order of a hash map, which differs between runs.
    inside_words = [f"##{character}" for character in characters if _joins_words(draft, character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=WORDPIECE_SPECIAL + inside_words,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    draft.train_from_iterator(sample, trainer)
    final = tokenizer(models.WordPiece(draft.get_vocab(), unk_token="[UNK]"))
    final.add_special_tokens(WORDPIECE_SPECIAL)
    return final


def _frequent_characters(tokenizer: Tokenizer, sample: Iterable[str], most: int) -> list[str]:
    """The `most` commonest characters of the normalised sample, without spaces. Ties are broken by code point."""
    raw: Counter[str] = Counter()
    for text in sample:
        raw.update(text)
    counts: Counter[str] = Counter()
    for character, count in raw.items():  # BERT's normaliser treats each character alone
        for normalised in tokenizer.normalizer.normalize_str(character):
            counts[normalised] += count
    ordered = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    return sorted(ordered[:most])


def _joins_words(tokenizer: Tokenizer, character: str) -> bool:
    """Whether a character can be inside a word. Punctuation and Chinese characters are words of their own."""
    word = tokenizer.normalizer.normalize_str(f"a{character}a")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) == 1


def for_transformers(tokenizer: Tokenizer, vocabulary: Vocabulary, sequence_length: int) -> PreTrainedTokenizerFast:
    """A trained tokenizer as an object of transformers, with the same ids. For masked models it adds [CLS] and [SEP]."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    start, separator = (tokenizer.id_to_token(token) for token in (vocabulary.start, vocabulary.separator))
    if vocabulary.mask is None:
        roles = {"bos_token": start, "eos_token": separator}
    else:
        roles = {"cls_token": start, "sep_token": separator, "mask_token": tokenizer.id_to_token(vocabulary.mask)}
        ends = [(start, vocabulary.start), (separator, vocabulary.separator)]
        pair = f"{start} $A {separator} $B {separator}"
        tokenizer.post_processor = TemplateProcessing(single=f"{start} $A {separator}", pair=pair, special_tokens=ends)
    spare = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    roles |= {role: token for role, token in spare.items() if tokenizer.token_to_id(token) in vocabulary.special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=sequence_length, **roles)


def pretrained(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of this name on the hub or in this folder. Raises UsageError if it is not found."""
    from transformers import AutoTokenizer

    try:
        found: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        assert found.backend_tokenizer
    except Exception as error:
        raise UsageError(f"tokenizer = {name!r}: cannot be loaded ({reason(error)})") from error
    return found  # type: ignore[no-any-return]


def named(name: str, masked: bool) -> tuple[Tokenizer, Vocabulary]:
    """As `pretrained`, with its token ids. Raises UsageError if it is not found or lacks a special token."""
    found = pretrained(name)
    tokenizer = found.backend_tokenizer
    ends = [found.sep_token_id, found.eos_token_id] if masked else [found.eos_token_id, found.sep_token_id]
    separator = next((token for token in ends if token is not None), None)
    if separator is None:
        raise UsageError(f"tokenizer = {name!r}: has neither a separator nor an end-of-text token")
    if masked and found.mask_token_id is None:
        raise UsageError(f"tokenizer = {name!r}: has no mask token, which a masked language model needs")
    start = separator if found.cls_token_id is None else found.cls_token_id
    tokenizer.no_truncation()
    tokenizer.no_padding()
    mask = found.mask_token_id if masked else None
    return tokenizer, Vocabulary(len(found), start, separator, mask, sorted(found.all_special_ids))
