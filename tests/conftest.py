import os
import signal
from pathlib import Path

import pytest

# Before anything imports Prefect or Hugging Face: no telemetry, no hub, no log noise, one engine thread a test run.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
)
if "PYTEST_XDIST_WORKER" in os.environ:  # several of them share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
# A run that was started in the background ignores Ctrl-C, and the processes that its tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in [n for n in os.environ if n.startswith("ONMODEL_")]:
    del os.environ[name]

pytest_plugins = [
    "tests.s3_server",
    "tests.database",
    "tests.prefect_server",
    "tests.studio_home",
    "tests.oidc_provider",
]

HERE = Path(__file__).parent
# The files that take longest, the longest first: a process that begins one at the end keeps the others waiting.
LONGEST = (
    "flows/test_controls_in_briefs.py",
    "studio/test_cli.py",
    "flows/test_training.py",
    "training/test_studio_model.py",
    "flows/test_killed.py",
    "flows/test_tuning.py",
    "training/test_shipped_model.py",
    "asset_store/blobs/test_contract.py",
    "flows/test_campaign.py",
    "studio/api/test_matrix.py",
    "asset_store/test_embedded.py",
    "benchmarks/test_engine.py",
    "studio/test_up.py",
    "flows/test_retaking.py",
    "flows/test_retention.py",
    "flows/test_start_up.py",
    "flows/test_character_sheet.py",
)
gone = [name for name in LONGEST if not (HERE / name).exists()]
if gone:
    raise FileNotFoundError(f"no longer there, take them out of LONGEST: {', '.join(gone)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, all others as they were; `--no-loadscope-reorder` has xdist keep to it."""
    place = {HERE / name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
