"""`onmodel evaluate` puts another engine beside IP-Adapter, on the same subjects."""

# ruff: noqa: F811  (fixtures are imported, then asked for by name)
from __future__ import annotations

from pathlib import Path

import pytest

from flows.evaluation import evaluate
from flows.evaluation_order import EvaluationOrder, EvaluationRefused
from flows.wiring import Store, open_store
from ipadapter_engine.errors import RequestRefused
from tests.evaluation.conftest import base, clip  # noqa: F401  (fixtures)
from tests.ipadapter_engine import tiny_native
from tests.ipadapter_engine.conftest import picture
from tests.studio_home import Home

ORDER = {"steps": 2, "size_px": 64, "seeds": 1, "texts": ("a {subject} on the beach",)}


@pytest.fixture(scope="module")
def flux2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_native.write_flux2(tmp_path_factory.mktemp("evaluated") / "flux2")


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """Two subjects with a picture each."""
    for seed, name in enumerate(("bo", "pip")):
        (tmp_path / "subjects" / name).mkdir(parents=True)
        picture(seed, 96).save(tmp_path / "subjects" / name / "front.png")
    return tmp_path / "subjects"


@pytest.fixture
def opened(home: Home, base: Path, flux2: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(base))
    monkeypatch.setenv("ONMODEL_ENGINES__FLUX2__BASE", str(flux2))
    with open_store() as store:
        yield store


def test_another_engine_is_a_row_beside_ip_adapter(opened: Store, subjects: Path, clip: Path, flux2: Path) -> None:
    order = EvaluationOrder("images", images=subjects, clip=clip, methods=("adapter", "native"), **ORDER)
    told = evaluate(opened, order, "ada")
    adapter, native = told["rows"][:2]
    assert (native["method"], native["title"]) == ("native", "FLUX.2")
    assert set(native["figures"]) == set(adapter["figures"])
    assert native["pictures"] == adapter["pictures"] == 2
    assert native["shared_bytes"] == sum(f.stat().st_size for f in flux2.rglob("*.safetensors"))
    assert {m["role"] for m in told["models"]} >= {"unet", "flux2 transformer", "flux2 vae", "flux2 text_encoder"}
    assert told["settings"]["others"][0]["engine"] == "flux2"
    again = evaluate(opened, order, "ada")
    assert (again["made_now"], again["made_before"]) == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "kontext"}, "no engine is called kontext"),
        ({"size_px": 72}, "a width of 72 px cannot be made by FLUX.2"),
    ],
)
def test_an_engine_that_cannot_be_compared_is_refused_before_a_picture_is_made(
    opened: Store, subjects: Path, clip: Path, changes: dict[str, object], message: str
) -> None:
    order = EvaluationOrder("images", images=subjects, clip=clip, methods=("native",), **{**ORDER, **changes})
    with pytest.raises((EvaluationRefused, RequestRefused), match=message):
        evaluate(opened, order, "ada")
