"""A `config.json`, read so that nothing is overlooked: every attribute is used, known not to matter, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...training.strict_json import CheckpointError

# fmt: off
INERT = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "auto_map", "begin_suppress_tokens",
        "bos_token_id", "chunk_size_feed_forward", "cls_token_id", "decoder_start_token_id", "dtype",
        "eos_token_id", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
        "gradient_checkpointing", "id2label", "initializer_factor", "initializer_range",
        "is_encoder_decoder", "keys_to_ignore_at_inference", "label2id", "language", "mask_token_id",
        "model_type", "num_labels", "output_attentions", "output_hidden_states", "output_past",
        "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id", "suppress_tokens",
        "task_specific_params", "tie_encoder_decoder", "tokenizer_class", "torch_dtype", "torchscript",
        "transformers_version", "unk_token_id", "use_bfloat16", "use_cache",
    }
)
# fmt: on
"""What says nothing about the computation of logits: names, token numbers, first weights, bookkeeping."""

LENGTHS = ("position", "length", "seq", "theta", "base", "window", "_id", "factor")
"""Parts of the names of numbers that no weight needs to be as large as: lengths, angles, numbers of tokens."""

_MISSING = object()


class Attributes:
    """The attributes of one model's `config.json`, each taken once; `finish` refuses what was not taken."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data, self._where = dict(data), where
        self.model_type: str = self.take("model_type", str)

    def take(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        """Return an attribute; `default` stands for one that is absent or null."""
        value = self._data.pop(name, None)
        if value is None:
            if default is _MISSING:
                raise self.fault(f"has no {name}")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.fault(f"has {name} {_show(value)}, which is not of type {kind.__name__}")
        return value

    def nullable(self, name: str, kind: type, absent: Any) -> Any:
        """Return an attribute for which null is a value of its own; `absent` stands for one that is not there."""
        if name in self._data and not self.has(name):
            return self._data.pop(name)
        return self.take(name, kind, absent)

    def takes(self, name: str, *values: str) -> bool:
        """Whether an attribute is one of these values, and then take it."""
        there = self._data.get(name) in values
        if there:
            del self._data[name]
        return there

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse an attribute unless it is absent, null or one of the values that mean what our model does."""
        value = self._data.pop(name, None)
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            choices = " or ".join(_show(one) for one in allowed) or "null"
            raise self.fault(f"has {name} {_show(value)}, and only {choices} can be loaded")

    def section(self, name: str) -> Attributes | None:
        """Return an attribute that is a table of attributes, to be taken and finished like this one."""
        value = self._data.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fault(f"has {name} {_show(value)}, which is not a table")
        return Attributes({"model_type": self.model_type, **value}, f"{self._where}: {name}")

    def has(self, name: str) -> bool:
        """Whether an attribute is there and not null."""
        return self._data.get(name) is not None

    def bound(self, n_tensors: int, size: int) -> None:
        """Refuse numbers that `size` bytes of weights, in so many tensors, cannot bear out."""
        for name, number in _numbers("", self._data):
            if any(part in name for part in LENGTHS):
                continue
            counts_layers = any(part in name for part in ("layer", "block", "attention_types"))
            limit, there = (n_tensors, "tensors") if counts_layers else (size, "bytes")
            if number > limit:
                raise self.fault(f"has {name} {_show(number)}, but its weights are only {limit:,} {there}")

    def finish(self) -> None:
        """Refuse whatever was not taken and could matter."""
        if unknown := sorted(self._data.keys() - INERT):
            raise self.fault(
                f"has the attribute {unknown[0][:80]!r}, which is not known for a model of type {self.model_type!r}; "
                "loading without it might give a different model"
            )

    def fault(self, reason: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self._where} {reason if len(reason) <= 500 else reason[:499] + '…'}")


def _numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a value, at any depth, each with the innermost name that it goes by."""
    if type(value) is int:
        yield name, value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(key, item)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
