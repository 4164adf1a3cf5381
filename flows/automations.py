"""Has Prefect's server do what deploy/automations.yaml says:

PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.automations [FILE]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import yaml

from asset_store.errors import SettingsInvalid
from flows.settings import Settings, configure_prefect, load_settings, prefect_api

FILE = Path(__file__).resolve().parent.parent / "deploy" / "automations.yaml"
ALERTS = "onmodel-alerts"  # the webhook block, and what stands for its id in the file


async def apply(settings: Settings, automations: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Make or change these automations, each known by its name; names of those that were made, changed and left out.

    Left out is what tells a webhook where the settings name none.
    """
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    block = await _save_webhook(settings)
    done: dict[str, list[str]] = {"made": [], "changed": [], "left out": []}
    async with get_client() as client:
        for told in automations:
            actions = [_with_block(action, block) for action in told["actions"]]
            if None in actions:
                done["left out"].append(told["name"])
                continue
            wanted = AutomationCore.model_validate({**told, "actions": actions})
            known = await client.read_automations_by_name(wanted.name)
            for automation in known:
                await client.update_automation(automation.id, wanted)
            if not known:
                await client.create_automation(wanted)
            done["changed" if known else "made"].append(wanted.name)
    return done


def read(file: Path = FILE) -> list[dict[str, Any]]:
    """The automations of a file."""
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    return found


async def _save_webhook(settings: Settings) -> str | None:
    """The id of the block that alerts go to; None where the settings name no address."""
    from prefect.blocks.webhook import Webhook
    from prefect.types import SecretDict

    url = settings.prefect.alerts_url
    if url is None:
        return None
    block = Webhook(
        url=url, headers=SecretDict({"Content-Type": "application/json"}), allow_private_urls=settings.telling.allow_private
    )  # fmt: skip
    return str(await block.save(ALERTS, overwrite=True))


def _with_block(action: dict[str, Any], block: str | None) -> dict[str, Any] | None:
    if action.get("block_document_id") != ALERTS:
        return action
    return None if block is None else {**action, "block_document_id": block}


def main(arguments: list[str]) -> int:
    settings = load_settings()
    configure_prefect(settings)
    if prefect_api() is None:
        raise SettingsInvalid("automations belong to a Prefect server", "Name it: PREFECT_API_URL=http://…/api")
    for what, names in asyncio.run(apply(settings, read(*map(Path, arguments[:1])))).items():
        if names:
            print(f"{what}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
