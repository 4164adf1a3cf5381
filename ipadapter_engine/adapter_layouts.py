"""How adapter files call their weights: by the authors, as a training leaves them, and as forks save them.

The authors' layout has two parts, `image_proj` and `ip_adapter`, whose layers are numbered (down, up, mid; every
attention layer counts). A training by their script saves `image_proj_model.*` and `adapter_modules.*` beside the UNet;
accelerate, writing safetensors, keeps of weights that are shared one name only, which is often the UNet's processors'.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor

from ipadapter_engine.errors import CheckpointRefused

_WRAPPERS = ("module.", "model.", "_orig_mod.", "state_dict.")  # of parallel, compiled and bundled models
_PARTS = {"image_proj_model.": "image_proj.", "adapter_modules.": "ip_adapter."}
_PROCESSOR = re.compile(
    r"(?:.*\.)?((?:down_blocks|up_blocks|mid_block)\..+\.processor)\."
    r"(to_[kv]_ip|to_(?:q|k|v|out)_lora\.(?:down|up))(?:\.0)?\.weight"
)
_FOLDER_FILES = ("ip_adapter.safetensors", "ip_adapter.bin")  # of InvokeAI


def adapter_file(path: Path) -> Path:
    """The weights themselves, where `path` is a folder as InvokeAI keeps adapters in."""
    inside = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
    return inside[0] if inside else path


def encoder_named_beside(file: Path) -> str | None:
    """The encoder that an adapter's `image_encoder.txt` names, as InvokeAI writes it."""
    note = file.parent / "image_encoder.txt"
    try:
        text = note.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text.splitlines()[0].strip() if text else None


def flat_state(nested: Mapping[Any, Any], prefix: str = "") -> dict[str, Tensor]:
    """Dictionaries within dictionaries as dotted keys; what is no tensor is left out."""
    flat: dict[str, Tensor] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flat_state(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            flat[f"{prefix}{key}"] = value
    return flat


def official_parts(
    state: Mapping[str, Tensor], unet: UNet2DConditionModel, *, file: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The keys of `image_proj` and of `ip_adapter` without these words, whichever of the layouts a file has.

    A processor that `unet` does not have keeps its name in place of a number. Raises CheckpointRefused for a file
    without one of the parts.
    """
    numbers = {name: str(n) for n, name in enumerate(unet.attn_processors)}
    proj: dict[str, Tensor] = {}
    numbered: dict[str, Tensor] = {}
    by_name: dict[str, Tensor] = {}
    trained = False
    for key, value in state.items():
        plain = key
        while wrapper := next((w for w in _WRAPPERS if plain.startswith(w)), None):
            plain = plain.removeprefix(wrapper)
        for theirs, official in _PARTS.items():
            if plain.startswith(theirs):
                plain, trained = official + plain.removeprefix(theirs), True
        trained = trained or plain.startswith("unet.")
        if match := _PROCESSOR.fullmatch(plain):
            name, part = match.groups()
            by_name[f"{numbers.get(name, name.replace('.', '/'))}.{part}.weight"] = value
        elif plain.startswith("image_proj."):
            proj[plain.removeprefix("image_proj.")] = value
        elif plain.startswith("ip_adapter."):
            numbered[plain.removeprefix("ip_adapter.")] = value
    if not proj or not (numbered or by_name):
        raise _refusal(file, "ip_adapter" if proj else "image_proj", trained and bool(proj))
    return proj, by_name | numbered


def _refusal(file: str, missing: str, trained: bool) -> CheckpointRefused:
    if trained:
        return CheckpointRefused(
            f"{file} is a training's checkpoint whose key and value layers were not saved: it has no {missing} keys",
            "save it again by accelerator.save_state(folder, safe_serialization=False), which drops no shared weights, "
            "or train with onmodel train adapter",
        )
    return CheckpointRefused(
        f"{file} is not an IP-Adapter file: it has no {missing} keys",
        "save the adapter with its image_proj and ip_adapter parts, or name another file",
    )
