"""Checkpoints of the UNet: read as a state dict, told apart by their shapes, compared with a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Mapping

WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every key
SHOWN = 8  # names of each kind in a message: a wrong network differs in hundreds


def read_state(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict, bare or under ``key`` (``model_state_dict`` where that is None), without running code.

    Returns
    -------
    dict
        Name to tensor, on the CPU, without the prefixes of DataParallel and torch.compile.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no file of tensors, or holds no state dict in that place.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no UNet checkpoint at {path}.")
    state = _state_dict(path, _load_tensors(path), key)
    for prefix in WRAPPERS:
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def infer_arguments(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tell the UNet's arguments, all but the dropout, from the shapes and names of its state dict.

    Raises
    ------
    ValueError
        The names that tell are missing, or their tensors have shapes that no UNet gives.
    """
    try:
        T, ch = state["time_embedding.timembedding.0.weight"].shape
        widths, attn, num_res_blocks = _levels(state)
        return {
            "T": T,
            "ch": ch,
            "ch_mult": [width // ch for width in widths],
            "attn": attn,
            "num_res_blocks": num_res_blocks,
            "in_channels": state["head.weight"].shape[1],
            "out_channels": state["tail.2.weight"].shape[0],
        }
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} does not tell which UNet it is for ({error}); its keys begin with {_some(state)}. "
            "Pass the network as model=UNet(...) to see what is missing."
        ) from error


def match_state(path: str | os.PathLike[str], state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Compare names and shapes with a network's.

    Raises
    ------
    ValueError
        They differ; the message lists missing keys, unexpected keys and other shapes.
    """
    wanted = model.state_dict()
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    differences = {
        "missing keys": [name for name in wanted if name not in state],
        "unexpected keys": [name for name in state if name not in wanted],
        "other shapes": reshaped,
    }
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in differences.items() if names]
    if found:
        raise ValueError(f"{path} does not fit this UNet. {'; '.join(found)}.")


def _load_tensors(path: str | os.PathLike[str]) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in ten ways, KeyError and struct.error among them
        raise ValueError(
            f"{path} cannot be read as a file of tensors ({type(error).__name__}): it is damaged, or holds Python "
            "objects, which are never unpickled. Write it with torch.save(model.state_dict(), path)."
        ) from error


def _state_dict(path: str | os.PathLike[str], content: Any, key: str | None) -> dict[str, Tensor]:
    """Pick the state dict out of what a file holds."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")  # noqa: TRY004 - a bad file
    if key is not None and key not in content:
        raise ValueError(f"{path} has no key {key!r}; it has {_some(content)}.")
    state = content[key] if key is not None else content.get("model_state_dict", content)
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state.values())):
        raise ValueError(
            f"{path} holds no state dict {f'under {key!r}' if key else 'at its top nor under model_state_dict'}; "
            f"its keys are {_some(content)}. Name the one to take, as in key='ema_model'."
        )
    return dict(state)


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _levels(state: Mapping[str, Tensor]) -> tuple[list[int], list[int], int]:
    """Return each level's channels, the levels that attend, and the residual blocks of a level."""
    levels: list[list[int]] = [[]]  # of each level, where its residual blocks stand among the downblocks
    for i in sorted({int(name.split(".")[1]) for name in state if name.startswith("downblocks.")}):
        if f"downblocks.{i}.main.weight" in state:
            levels.append([])
        else:
            levels[-1].append(i)
    widths = [len(state[f"downblocks.{blocks[0]}.block2.3.bias"]) for blocks in levels]
    attn = [n for n, blocks in enumerate(levels) if f"downblocks.{blocks[0]}.attn.proj.weight" in state]
    return widths, attn, len(levels[0])


def _some(names: Collection[Any]) -> str:
    """List the first names, and how many more there are."""
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
