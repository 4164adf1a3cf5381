"""The engine knows no database, no object storage and no flows: it loads where none of them is installed."""

from __future__ import annotations

import subprocess
import sys

PARTS = [
    "pipeline",
    "requests",
    "checkpoints",
    "controls",
    "controlnets",
    "characters",
    "depth",
    "encoder",
    "families.sd15",
    "families.sdxl",
    "families.studio",
]
OTHERS = [
    "sqlalchemy",
    "psycopg",
    "boto3",
    "prefect",
    "typer",
    "fastapi",
    "pydantic_settings",
    "asset_store",
    "flows",
    "studio",
]


def test_the_engine_loads_without_database_storage_and_flows() -> None:
    """None in sys.modules makes an import fail; libraries may look for boto3, but ours must not need it."""
    program = "\n".join(
        [
            "import sys",
            *(f"sys.modules[{name!r}] = None" for name in OTHERS),
            *(f"import ipadapter_engine.{part}" for part in PARTS),
            "print(*sorted({n.split('.')[0] for n, module in sys.modules.items() if module is not None}))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "ipadapter_engine" in loaded
    assert not loaded & set(OTHERS)
