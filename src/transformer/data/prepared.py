"""The prepared form of a data set: a folder of token arrays that is whole or absent.

    manifest.json     what is here, from which files, with which settings; it ends with its own sha256
    tokenizer.json    the tokenizer that made the tokens
    <name>.bin        one array each (see arrays.py)

The folder is built under a temporary name and renamed when it is complete: two processes that prepare the
same data at once do not disturb each other, and whoever comes second uses the first one's result.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, get_args

from .arrays import ArrayInfo, ArrayWriter, DType, IntArray, open_array, token_dtype
from .errors import DataError
from .files import find_file, hash_file, write_atomically
from .loading import TokenizerConfig, parse_tokenizer
from .tokenizer import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
JSON: TypeAlias = dict[str, Any]


def canonical(data: JSON) -> bytes:
    """Return the one spelling of JSON `data`."""
    return json.dumps(data, sort_keys=True, indent=1).encode()


def _digest(data: JSON) -> str:
    return hashlib.sha256(canonical(data)).hexdigest()


def tokenizer_settings(config: TokenizerConfig) -> JSON:
    """Return what identifies the tokenizer that `config` yields: for one in a file, its content."""
    settings = {"kind": config.kind, **asdict(config)}
    if path := settings.pop("path", None):
        return {"kind": config.kind, "sha256": hash_file(find_file(Path(path)))}
    return settings


class Builder:
    """A prepared folder in the making."""

    def __init__(self, folder: Path, kind: str, settings: JSON, tokenizer: Tokenizer) -> None:
        self._folder, self._kind, self._settings, self.tokenizer = folder, kind, settings, tokenizer
        self._arrays: dict[str, ArrayInfo] = {}

    @contextmanager
    def tokens(self, name: str) -> Iterator[ArrayWriter]:
        """Write the token array `name`."""
        with self._array(name, token_dtype(self.tokenizer.vocab_size)) as writer:
            yield writer

    @contextmanager
    def offsets(self, name: str) -> Iterator[ArrayWriter]:
        """Write the array `name` of positions in another array."""
        with self._array(name, "<u8") as writer:
            yield writer

    @contextmanager
    def _array(self, name: str, dtype: DType) -> Iterator[ArrayWriter]:
        with ArrayWriter(self._folder / f"{name}.bin", dtype) as writer:
            yield writer
        self._arrays[name] = writer.info

    def finish(self, sources: JSON, counts: JSON, classes: list[str] | None = None) -> None:
        """Write the tokenizer and the manifest.

        sources: the hashes of the files read; classes: the names of the classes, where texts have some.
        """
        content = self.tokenizer.to_bytes()
        write_atomically(self._folder / TOKENIZER, content)
        manifest = {
            "format": FORMAT,
            "kind": self._kind,
            "settings": self._settings,
            "sources": sources,
            "tokenizer": {
                "fingerprint": self.tokenizer.fingerprint,
                "sha256": hashlib.sha256(content).hexdigest(),
                "vocab_size": self.tokenizer.vocab_size,
            },
            "arrays": {name: asdict(info) for name, info in self._arrays.items()},
            "counts": counts,
            **({} if classes is None else {"classes": classes}),
        }
        write_atomically(self._folder / MANIFEST, canonical({**manifest, "sha256": _digest(manifest)}))


@contextmanager
def building(output: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `output` when the block ends well and vanishes otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.parent / f".tmp-{output.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(output)
        except OSError:
            if not (output / MANIFEST).is_file():  # else another process was first with the same data
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(output: Path) -> None:
    """DataError when a folder to prepare into already holds something."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"{output} already exists and is not empty; give a new folder or delete it first")


class DataConfig(ABC):
    """What all kinds of data configuration have in common."""

    kind: ClassVar[str]

    @abstractmethod
    def load(self) -> Corpus[Any]:
        """Open the data, preparing it first unless that was done before."""

    @abstractmethod
    def prepare(self, output: Path) -> Corpus[Any]:
        """Turn raw files into the new folder `output`; DataError names what cannot be used."""


class FileData(DataConfig):
    """Data that is read from files.

    path: raw files, or a prepared folder. cache: where prepared data is kept; `.prepared` next to `path` when None.
    """

    path: str
    cache: str | None

    @abstractmethod
    def files(self) -> Mapping[str, Sequence[Path]]:
        """Return the raw files of each split."""

    @abstractmethod
    def settings(self) -> JSON:
        """Return what, besides the raw files, decides the prepared form."""


Config = TypeVar("Config", bound=DataConfig)
Files = TypeVar("Files", bound=FileData)


def find_or_prepare(config: Files, prepare: Callable[[Files, Path], None]) -> Path:
    """Return the prepared folder of `config`: its path, or one in the cache that `prepare` fills if need be.

    A folder in the cache is named after the content of the raw files and the settings.
    """
    path = Path(config.path)
    try:
        prepared = (path / MANIFEST).is_file()
    except (OSError, ValueError) as error:  # such as a name that is longer than any file's can be
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"data.path {config.path[:100]!r} cannot be looked at: {reason}; check its spelling"
        ) from None
    if prepared:
        return path
    identity = {
        "format": FORMAT,
        "kind": config.kind,
        "settings": config.settings(),
        "sources": hash_sources(config.files()),
    }
    cache = path.parent / ".prepared" if config.cache is None else Path(config.cache)
    output = cache / f"{path.resolve().name}-{_digest(identity)[:16]}"
    if not (output / MANIFEST).is_file():
        prepare(config, output)
    return output


def hash_sources(files: Mapping[str, Sequence[Path]]) -> JSON:
    """Return each split's files with their sha256."""
    return {split: [[path.name, hash_file(path)] for path in paths] for split, paths in files.items()}


@dataclass(frozen=True)
class Prepared:
    """An opened prepared folder."""

    folder: Path
    manifest: JSON
    tokenizer: Tokenizer

    @property
    def counts(self) -> JSON:
        """How much each split holds."""
        counts: JSON = self.manifest["counts"]
        return counts

    def tokens(self, name: str) -> IntArray:
        """Return the token array `name`, checked."""
        return self.array(name, below=self.tokenizer.vocab_size)

    def array(self, name: str, below: int | None = None) -> IntArray:
        """Return the array `name`, checked against its size, its hash and a bound on its numbers."""
        arrays = self.manifest["arrays"]
        if name not in arrays:
            raise DataError(f"{self.folder} has no {name!r}; it holds {', '.join(sorted(arrays))}")
        path, info = self._path(name), arrays[name]
        if info["dtype"] not in get_args(DType):
            raise DataError(
                f"{name!r} has dtype {info['dtype']!r}; expected one of {', '.join(get_args(DType))}"
            )
        return open_array(path, ArrayInfo(info["dtype"], info["length"], tuple(info["sha256"])), below)

    def require(self, settings: JSON) -> None:
        """DataError when the folder was prepared with other settings than these."""
        for key, wanted in settings.items():
            found = self.manifest["settings"].get(key)
            if found != wanted:
                raise DataError(
                    f"{self.folder} was prepared with {key} {json.dumps(found)}, but the configuration says "
                    f"{json.dumps(wanted)}; set data.{key} to match or give the raw files as data.path"
                )

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise DataError(f"{self.folder / MANIFEST}: {name!r} is not the name of an array")
        return self.folder / f"{name}.bin"


def open_prepared(folder: Path, kind: str) -> Prepared:
    """Open a prepared folder of this `kind`. DataError for a damaged manifest or tokenizer."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        stated = manifest.pop("sha256")
        whole = stated == _digest(manifest) and content == canonical({**manifest, "sha256": stated})
    except FileNotFoundError:
        raise DataError(f"{folder} is no prepared data set: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DataError(
            f"{path} is damaged: it differs from its own sha256; delete {folder} and prepare the data again"
        )
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path} is not of format {FORMAT}, the one this version reads; prepare the data again"
        )
    if manifest["kind"] != kind:
        raise DataError(f"{folder} holds {manifest['kind']} data, but data.kind is {kind!r}; set it to match")
    return Prepared(folder, manifest, _read_tokenizer(folder / TOKENIZER, manifest["tokenizer"]))


class Corpus(ABC, Generic[Config]):
    """Data of some kind, ready to train on and to evaluate with."""

    config: Config
    tokenizer: Tokenizer

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits there are: "train", "validation" and perhaps "test"."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, dict[str, int]]:
        """How much there is of what in each split."""

    def require_split(self, split: str) -> None:
        """DataError for a split that the data does not have."""
        if split not in self.splits:
            raise DataError(f"the data has no split {split!r}; it has {', '.join(self.splits)}")

    def add_special_tokens(self, names: Sequence[str]) -> None:
        """Give the tokenizer the special tokens of these names that it lacks; no text of the data has their ids."""
        self.tokenizer = self.tokenizer.with_special(names)


class PreparedCorpus(Corpus[Files]):
    """Data in a prepared folder."""

    def __init__(self, config: Files, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._prepared = open_prepared(folder, config.kind)
        self._prepared.require(config.settings())
        self.tokenizer = self._prepared.tokenizer

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._prepared.counts)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return self._prepared.counts


def _read_tokenizer(path: Path, stated: JSON) -> Tokenizer:
    if not path.is_file():
        raise DataError(f"{path} is missing; delete the folder {path.parent} and prepare the data again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != stated["sha256"]:
        raise DataError(f"{path} was changed: it differs from its hash in {MANIFEST}; prepare the data again")
    return parse_tokenizer(content, str(path))
