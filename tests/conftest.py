import os
import signal

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
