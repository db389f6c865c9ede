"""The sections of a run's configuration that are its own: what is measured, how it is computed, where it goes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge

from ..base.sockets import Execution
from ..enhancements.architecture.moe.dispatch import DISPATCHES
from ..enhancements.attention.kernels import KERNELS
from ..enhancements.ssm.forms import SCANS


@dataclass(frozen=True)
class EvaluationConfig:
    """The `evaluation` section: what is measured at the end of a run, and what is shown.

    split: of the data, for the final figures; null is `test` where there is one, else `validation`.
    beam_size, length_penalty: the search of translations (arXiv 1706.03762 §6.1: 4 and 0.6).
    average_checkpoints: evaluate the mean of the last so many checkpoints' weights
    (§6.1: 5), instead of the last, or the moving average if there is one. samples: translations to show, or
    figures of their attention to draw. sample_tokens, prompt: the text that a language model writes.
    """

    split: str | None = None
    beam_size: Annotated[int, Ge(1)] = 4
    length_penalty: Annotated[float, Ge(0)] = 0.6
    average_checkpoints: Annotated[int, Ge(1)] = 1
    samples: Annotated[int, Ge(0)] = 5
    figures: Annotated[int, Ge(0)] = 3
    sample_tokens: Annotated[int, Ge(1)] = 200
    prompt: str = "\n"


@dataclass(frozen=True)
class ExecutionConfig:
    """The `execution` section: how to compute, never what, so that it may differ between two sittings of one run.

    kernel: the attention kernel; auto is the definition, or with model.use_flash_attention the best for each case.
    dispatch: how tokens are brought to their experts; auto is the faster way. scan: the form of a state-space model's
    recurrence; auto is the best for each case.
    """

    kernel: Literal["auto", "naive", "flash", "chunked", "sdpa", "flex", "triton"] = "auto"
    dispatch: Literal["auto", "loop", "grouped"] = "auto"
    scan: Literal["auto", "sequential", "associative", "chunked", "convolution", "triton"] = "auto"

    def apply(self, execution: Execution) -> Execution:
        """What the switches say, unless this section says otherwise."""
        if self.kernel != "auto":
            execution = replace(execution, kernel=KERNELS[self.kernel])
        if self.dispatch != "auto":
            execution = replace(execution, dispatch=DISPATCHES[self.dispatch])
        return execution if self.scan == "auto" else replace(execution, scan=SCANS[self.scan])


@dataclass(frozen=True)
class OutputConfig:
    """The `output` section. dir: the run folder; null makes a new one, `runs/NAME-TIME-HEX`."""

    dir: str | None = None
