"""How a model is being executed: what a hook cannot see there, said in words. Nothing is changed.

torch.compile traces a model when it first runs. Hooks that were there before are called, between two graphs; those of
a guard that is attached later are not, and nothing tells them. `nn.DataParallel` runs copies of the model that last
for one forward, in threads, so that what their hooks count belongs to nobody.

A CUDA graph that a user captures is what its kernels were; hooks are called once, while it is captured, and what they
put on the stream is replayed with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import torch
from torch import nn

__all__ = [
    "Capture",
    "compiled_parts",
    "explain_compiled",
    "has_compiled",
    "is_capturing",
    "refuse_replicas",
    "unwrap_compiled",
]


class Capture(Enum):
    """What a guard knows of a forward that was captured in a CUDA graph; the value is what people are told."""

    COUNTED = (
        "its forward was captured in a CUDA graph: every replay counts its codes, and renews the same up to 256 "
        "sampled latents; gradients are not felt there, and actions that do not work by writing to tensors are refused"
    )
    MISSED = (
        "its forward was captured in a CUDA graph before the guard had seen one outside of it: replays show it "
        "nothing. Attach the guard before the warm-up steps that precede a capture"
    )


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, whose names are the user's own; any other as it is."""
    inner = getattr(model, "_orig_mod", None)
    return inner if type(model).__name__ == "OptimizedModule" and isinstance(inner, nn.Module) else model


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the paths of modules that are compiled: wrapped by `torch.compile(part)`, or in place by `part.compile()`.

    A wrapper that stands outside of the model, and a compiled function that calls it, leave no trace in it.
    """
    return [
        path or "the model"
        for path, module in model.named_modules()
        if unwrap_compiled(module) is not module or getattr(module, "_compiled_call_impl", None) is not None
    ]


def explain_compiled(parts: Iterable[str]) -> str:
    """Say why a codebook may be silent where parts of its model are compiled, or where anything at all was."""
    named = ", ".join(parts)
    who = f"compiled: {named}" if named else "torch.compile is in use"
    return (
        f"{who}; if it had run before the guard was attached, its graphs do not know the guard's hooks. Attach before "
        f"the first forward, or call torch.compiler.reset() after attaching"
    )


def has_compiled() -> bool:
    """Whether torch.compile has traced anything in this process."""
    dynamo = getattr(torch, "_dynamo", None)
    counters = getattr(getattr(dynamo, "utils", None), "counters", {})
    return bool(counters.get("frames"))


def is_capturing() -> bool:
    """Whether what is put on the current stream goes into a CUDA graph; values cannot be asked for then."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_replicas(model: nn.Module) -> None:
    """Refuse a model that runs as copies.

    Raises:
        ValueError: a part of it is an `nn.DataParallel` of several devices.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise ValueError(
                f"expected a model that runs itself, got nn.DataParallel over {len(module.device_ids)} devices at "
                f"{path or 'the top'}: its forwards run on copies that are thrown away. Use DistributedDataParallel, "
                f"or one device"
            )
