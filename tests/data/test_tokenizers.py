"""Tokenizers: exact round trips, special tokens that text cannot spell, one readable file each."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from transformer.data import (
    BPEConfig,
    BPETokenizer,
    ByteTokenizer,
    CharacterConfig,
    CharacterTokenizer,
    DataError,
    SavedConfig,
    StreamDecoder,
    Tokenizer,
    load_tokenizer,
    parse_tokenizer,
    read_tokenizer_json,
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "die Hündin läuft über die Straße",
    "<pad> <bos> <eos> ⟨pad⟩ ⟨bos⟩ ⟨eos⟩ <|endoftext|>",
    "中文 текст 😀😀",
] * 40
BPE = BPEConfig(vocab_size=340).train(CORPUS)
CHARACTER = CharacterConfig().train(CORPUS)
ALL: list[Tokenizer] = [ByteTokenizer(), BPE, CHARACTER]
OPEN: list[Tokenizer] = [ByteTokenizer(), BPE]
ODD = "\x00 \r\n\r \u2028\u2029\x85\x0b\x0c \ufeff\U0010ffff\ue000 e\u0301 👩‍🚀  \n\n "


@pytest.mark.parametrize("tokenizer", OPEN, ids=lambda t: t.kind)
@given(text=st.text())
@example(ODD)
@example("<pad><eos></s>⟨eos⟩<|endoftext|>")
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert not {tokenizer.pad, tokenizer.bos, tokenizer.eos} & set(tokens)


@given(text=st.text(min_size=1))
@example(ODD)
def test_any_text_survives_by_characters(text: str) -> None:
    tokenizer = CharacterTokenizer(text)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) == len(text) and tokenizer.vocab_size == 3 + len(set(text))


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
@given(data=st.data())
def test_a_stream_decodes_like_the_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokens]
    assert "".join(pieces) + decoder.finish() == tokenizer.decode(tokens)


@pytest.mark.parametrize("tokenizer", OPEN, ids=lambda t: t.kind)
@given(text=st.text().filter(lambda text: "\ufffd" not in text))
def test_a_stream_never_splits_a_character(tokenizer: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(tokenizer)
    shown = ""
    for token in tokenizer.encode(text):
        shown += decoder.push(token)
        assert text.startswith(shown)
    assert shown == text and decoder.finish() == ""


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_special_tokens_are_distinct_and_skipped(tokenizer: Tokenizer) -> None:
    special = [tokenizer.pad, tokenizer.bos, tokenizer.eos]
    assert len(set(special)) == 3
    tokens = tokenizer.encode("the dog")
    assert tokenizer.decode([tokenizer.bos, *tokens, tokenizer.eos, tokenizer.pad]) == "the dog"
    with pytest.raises(IndexError, match=rf"token {tokenizer.vocab_size} is outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_a_batch_is_its_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(CORPUS) == [tokenizer.encode(text) for text in CORPUS]


def test_bpe_equals_a_textbook_loop() -> None:
    """Sennrich et al. 2016, algorithm 1, applied greedily by rank to each space-led word."""
    merges = [tuple(pair) for pair in BPE.payload()["tokenizer"]["model"]["merges"]]
    rank = {pair: i for i, pair in enumerate(merges)}
    vocabulary = BPE.payload()["tokenizer"]["model"]["vocab"]

    def tokenize(word: str) -> list[str]:
        symbols = list(word)
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
            if best not in rank:
                break
            at = pairs.index(best)
            symbols[at : at + 2] = ["".join(best)]
        return symbols

    text = "the lazy dog jumps over a quick thequick overlazy brownish fox xof nworb ththth"
    words = re.findall(r" ?\w+", text)
    expected = [vocabulary[s] for word in words for s in tokenize(word.replace(" ", "Ġ"))]
    assert BPE.encode(text) == expected
    assert len(expected) < 0.7 * len(text), "the merges must matter"


def test_bpe_learning_is_deterministic_and_of_the_asked_size() -> None:
    again = BPEConfig(vocab_size=340).train(CORPUS)
    assert again.fingerprint == BPE.fingerprint
    assert BPE.vocab_size == 340
    assert BPEConfig(vocab_size=330).train(CORPUS).fingerprint != BPE.fingerprint


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert type(loaded) is type(tokenizer) and loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode_batch(CORPUS) == tokenizer.encode_batch(CORPUS)
    assert json.loads(path.read_text(encoding="utf-8"))["kind"] == tokenizer.kind
    assert [entry.name for entry in tmp_path.iterdir()] == ["tokenizer.json"]


def test_fingerprints_differ() -> None:
    assert len({t.fingerprint for t in [*ALL, CharacterTokenizer("ab"), CharacterTokenizer("abc")]}) == 5


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
@pytest.mark.parametrize("character", ["t", " ", "\n"], ids=repr)
def test_a_megabyte_of_one_character_takes_at_most_two_seconds(tokenizer: Tokenizer, character: str) -> None:
    if tokenizer is CHARACTER and character == "\n":
        tokenizer = CharacterTokenizer("\n")
    text = character * 1_000_000
    start = time.process_time()
    tokens = tokenizer.encode(text)
    assert time.process_time() - start <= 2
    assert tokenizer.decode(tokens) == text


def test_unknown_characters_are_refused_with_their_position() -> None:
    tokenizer = CharacterTokenizer("abc D")
    with pytest.raises(
        DataError, match=r"character 3 of the text, 'é' \(U\+00E9\), is not in the alphabet of 5 cha"
    ):
        tokenizer.encode("ab é")
    with pytest.raises(DataError, match=r"'d' .*; 'D' is in it; a byte or bpe tokenizer encodes any text"):
        tokenizer.encode("d")
    with pytest.raises(DataError, match="'😀'"):  # beyond the last code point of the alphabet
        tokenizer.encode("😀")
    with pytest.raises(DataError, match="at least one character"):
        CharacterTokenizer("")


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"character 2 of the text is the lone surrogate U\+D800"):
        tokenizer.encode("do\ud800")
    with pytest.raises(DataError, match="lone surrogate"):
        BPEConfig().train(["\udfff"])


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(DataError, match=r"vocab_size 258 is too small .* at least 259"):
        BPEConfig(vocab_size=258)


def foreign(**change: Any) -> dict[str, Any]:
    """A GPT-2-like tokenizer.json, with some of its parts changed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"he": 256}
    backend = Backend(models.BPE(vocab=vocab, merges=[("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    spec: dict[str, Any] = json.loads(backend.to_str())
    for path, value in change.items():
        *parents, last = path.split("__")
        section = spec
        for parent in parents:
            section = section[parent]
        section[last] = value
    return spec


def test_a_tokenizer_of_others_keeps_its_ids(tmp_path: Path) -> None:
    end = "<|endoftext|>"
    tokenizer = BPETokenizer(foreign(), bos=end, eos=end)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocab_size) == (257, 257, 258, 259)
    assert tokenizer.encode("hehe") == [256, 256]
    assert tokenizer.decode(tokenizer.encode(end)) == end and 257 not in tokenizer.encode(end)
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(foreign()))
    learned = BPEConfig(path=str(path)).train([])
    assert (learned.pad, learned.bos, learned.eos) == (258, 259, 260)
    assert parse_tokenizer(tokenizer.to_bytes(), "it").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, "it has no vocabulary"),
        ({"model__type": "WordPiece"}, "it is no byte-level BPE"),
        ({"decoder": None}, "it is no byte-level BPE"),
        ({"model__dropout": 0.1}, "BPE dropout"),
        ({"normalizer": {"type": "Lowercase"}}, "it changes text"),
        ({"pre_tokenizer__add_prefix_space": True}, "it changes text"),
        ({"model__merges": [["q", "zz"]]}, "the 'tokenizers' library refuses it"),
        ({"model__vocab": {"a": 0}, "model__merges": []}, "byte 0x00 has no token of its own"),
        ({"added_tokens": [{"id": 257, "content": "x y", "special": False}]}, "'x y' is not special"),
        ({"added_tokens": [{"content": "x y"}]}, "theirs.json: "),
    ],
)
def test_tokenizers_that_are_not_exact_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(foreign(**change)))
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "x.json is not JSON"),
        (b"[" * 100_000, "x.json is not JSON"),
        (b"[]", "kind None; expected one of bpe, byte, character"),
        (b'{"kind": "bite"}', "'bite'; .*the nearest is 'byte'"),
        (b'{"kind": "character"}', "lacks a part of a character tokenizer"),
        (b'{"kind": "character", "alphabet": ""}', "no usable tokenizer: .*at least one character"),
        (
            b'{"kind": "bpe", "tokenizer": 3, "pad": "a", "bos": "b", "eos": "c"}',
            "lacks a part of a bpe tokenizer",
        ),
    ],
)
def test_broken_tokenizer_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_tokenizer(content, "x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_tokenizer, read_tokenizer_json])
def test_a_missing_tokenizer_is_named(read: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(
        DataError, match=r"no file .*tokeniser\.json\[\.gz\]; the nearest is 'tokenizer\.json'"
    ):
        read(tmp_path / "tokeniser.json")


# ---------------------------------------------------------------- special tokens that are added


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda t: t.kind)
def test_special_tokens_can_be_added(tokenizer: Tokenizer) -> None:
    names = ["⟨mask⟩", "<extra_id_0>", "<extra_id_1>"]
    more = tokenizer.with_special(names)
    text = "to be, <extra_id_0> or not" if tokenizer.kind != "character" else "to be"
    assert more.encode(text) == tokenizer.encode(text), "text that looks like one stays text"
    assert [more.special(name) for name in names] == [tokenizer.vocab_size + i for i in range(3)]
    assert more.vocab_size == tokenizer.vocab_size + 3
    assert more.decode([*more.encode(text), more.special("⟨mask⟩")]) == text
    assert set(more.special_ids) == {more.pad, more.bos, more.eos, *map(more.special, names)}
    assert more.fingerprint != tokenizer.fingerprint
    again = parse_tokenizer(more.to_bytes(), "it")
    assert again.fingerprint == more.fingerprint
    assert again.special("<extra_id_1>") == more.special("<extra_id_1>")
    assert more.with_special(["⟨mask⟩"]).fingerprint == more.fingerprint, "what is there is not added again"
    assert tokenizer.with_special([]).to_bytes() == tokenizer.to_bytes(), "old files stay as they were"
    with pytest.raises(DataError, match="no special token 'mask'; it has none but pad, bos and eos"):
        tokenizer.special("mask")
    with pytest.raises(DataError, match="no special token 'mask'; it has ⟨mask⟩, <extra_id_0>"):
        more.special("mask")


def test_special_tokens_of_others_are_known(tmp_path: Path) -> None:
    names = [{"id": 257 + i, "content": name, "special": True} for i, name in enumerate(["<mask>", "<unk>"])]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(foreign(added_tokens=[{**name, **flags} for name in names])))
    tokenizer = read_tokenizer_json(path)
    assert tokenizer.special("<mask>") == 257
    assert tokenizer.with_special(["<unk>"]).vocab_size == tokenizer.vocab_size


def test_a_saved_tokenizer_is_a_choice(tmp_path: Path) -> None:
    more = ByteTokenizer().with_special(["⟨mask⟩"])
    more.save(tmp_path / "tokenizer.json")
    assert SavedConfig(str(tmp_path / "tokenizer.json")).train([]).fingerprint == more.fingerprint
    with pytest.raises(DataError, match="its 'special' must be a list of names"):
        parse_tokenizer(b'{"kind": "byte", "special": "mask"}', "x.json")
