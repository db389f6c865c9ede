"""Tokenizers made from a bare list of tokens, as GGUF files and llama2.c's have it.

Two kinds: byte-level BPE with its merges (`gpt2`), and SentencePiece's BPE (`llama`), which has a score for each piece
and no merges: of all neighbouring pieces that make a piece, the pair that makes the best is joined first, the leftmost
of equals (arXiv 1808.06226 §3.1). As merges that is every way to cut a piece in two, ordered by the piece's score.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ..training.strict_json import CheckpointError, regular_size
from .gguf_header import read_header
from .published_tokenizer import NONE, PublishedTokenizer, Specials

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens, as GGUF numbers them."""
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGITS = ("smollm", "starcoder", "refact", "command-r")
SPLITS: Mapping[str, str] = {"llama-bpe": WORDS % "{1,3}", "llama3": WORDS % "{1,3}", "qwen2": WORDS % ""}
PLAIN = ("gpt-2", "default", "")
MAX_FILE, MAX_PIECES = 2**27, 2**22


def read_gguf_tokenizer(path: Path) -> PublishedTokenizer:
    """Return the tokenizer of a GGUF file; ValueError in one line if it is missing, malformed or of another kind."""
    settings, where = read_header(path).settings, str(path)

    def take(name: str, kind: type, default: Any = None) -> Any:
        value = settings.get(f"tokenizer.ggml.{name}", default)
        if value is not default and type(value) is not kind:
            raise CheckpointError(f"{where}: its tokenizer.ggml.{name} is no {kind.__name__}")
        return value

    tokens, kinds = take("tokens", list), take("token_type", list)
    if not tokens or not all(isinstance(token, str) for token in tokens) or len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{where} has no list of tokens without repetitions, so no tokenizer")
    kinds = [NORMAL] * len(tokens) if kinds is None else kinds
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{where} has {len(tokens)} tokens, and {len(kinds)} token types")
    model = take("model", str, "")
    if model == "gpt2":
        backend = _byte_level(tokens, kinds, take("merges", list, []), take("pre", str, ""), where)
    elif model == "llama":
        scores = take("scores", list, [0.0] * len(tokens))
        backend = sentencepiece(tokens, kinds, scores, where, blank=take("add_space_prefix", bool, True))
    else:
        raise CheckpointError(
            f"{where} has a tokenizer of kind {model[:40]!r}, and only gpt2 and llama are read"
        )
    ids = {
        name: take(f"{long}_token_id", int, NONE)
        for name, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    stops = {ids["eos"], take("eot_token_id", int, NONE)} - {NONE}
    first = (ids["bos"],) if take("add_bos_token", bool, model == "llama") and ids["bos"] != NONE else ()
    return PublishedTokenizer(backend, Specials(**ids, stops=tuple(sorted(stops)), prefix=first))


def read_llama2c_tokenizer(path: Path) -> PublishedTokenizer:
    """Return the tokenizer of a file of llama2.c: a longest length, then for each piece its score, length and bytes."""
    if regular_size(path) > MAX_FILE:
        raise CheckpointError(f"{path} is too large for a tokenizer of llama2.c")
    data, at = path.read_bytes(), 4
    pieces: list[str] = []
    scores: list[float] = []
    try:
        while at < len(data) and len(pieces) <= MAX_PIECES:
            score, length = struct.unpack_from("<fi", data, at)
            if not 0 <= length <= len(data) - at - 8:
                raise ValueError("a piece is longer than the file")
            pieces.append(data[at + 8 : at + 8 + length].decode())
            scores.append(score)
            at += 8 + length
    except (struct.error, ValueError):
        raise CheckpointError(f"{path} is not a tokenizer of llama2.c, or damaged at byte {at:,}") from None
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)][: len(pieces)]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    spelled = [*names, *(piece.replace(" ", "▁") for piece in pieces[len(names) :])]
    if len(pieces) < len(names) or len(set(spelled)) != len(spelled):
        raise CheckpointError(
            f"{path} is not a tokenizer of llama2.c: it lacks the 256 bytes, or a piece occurs twice"
        )
    return PublishedTokenizer(
        sentencepiece(spelled, kinds, scores, str(path)), Specials(1, 2, NONE, (1, 2), (1,))
    )


def sentencepiece(
    pieces: Sequence[str], kinds: Sequence[int], scores: Sequence[float], where: str, blank: bool = True
) -> Backend:
    """Return SentencePiece's BPE. blank: every text begins with a blank, whether it has one or not."""
    if len(scores) != len(pieces):
        raise CheckpointError(f"{where} has {len(pieces)} tokens, and {len(scores)} scores")
    spelled = {piece: i for i, piece in enumerate(pieces) if kinds[i] in (NORMAL, USER)}
    merges = []
    for piece, index in spelled.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        merges += [(-scores[index], *cut) for cut in cuts if cut[0] in spelled and cut[1] in spelled]
    merges.sort(key=lambda merge: merge[0])
    unknown = next((piece for piece, kind in zip(pieces, kinds, strict=True) if kind == UNKNOWN), None)
    backend = Backend(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[(left, right) for _, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    lead = [normalizers.Prepend("▁")] if blank else []
    backend.normalizer = normalizers.Sequence([*lead, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if blank else steps)
    _add(backend, pieces, kinds)
    return backend


def _byte_level(
    tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[Any], pre: str, where: str
) -> Backend:
    """Return a byte-level BPE. pre: how a text is cut before pairs are merged."""
    cuts = [merge.partition(" ") for merge in merges if isinstance(merge, str)]
    pairs = [(left, right) for left, _, right in cuts]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(pairs) != len(merges) or not all("".join(pair) in vocabulary for pair in pairs):
        raise CheckpointError(f"{where} has merges that are no pairs, or that make no token")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in SPLITS)
    cut: pre_tokenizers.PreTokenizer
    if pre in DIGITS:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    elif pre in SPLITS:
        cut = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"), level])
    elif pre in PLAIN:
        cut = level
    else:
        known = ", ".join(sorted({*DIGITS, *SPLITS, *PLAIN} - {""}))
        raise CheckpointError(f"{where} cuts text as {pre[:40]!r}, and only {known} are known")
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in ("llama-bpe", "llama3"))
    )
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    _add(backend, tokens, kinds)
    return backend


def _add(backend: Backend, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tell the backend which tokens are special, and which are looked for in a text before all else."""
    named = zip(tokens, kinds, strict=True)
    control = [token for token, kind in named if kind in (UNKNOWN, CONTROL)]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    user = [token for token, kind in zip(tokens, kinds, strict=True) if kind == USER]
    backend.add_tokens([AddedToken(token, normalized=False) for token in user])
