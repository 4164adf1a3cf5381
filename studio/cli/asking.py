"""`onmodel lineage`, `doctor`, `audit verify`, `recall`, `gc`: questions about what is there, and rights taken back."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.tree import Tree

from studio.cli.app import By, Json, app
from studio.cli.console import Exit, Options, emit, out, plain, speaking, table

audit_app = typer.Typer(no_args_is_help=True, help="The record of who did what.")
app.add_typer(audit_app, name="audit")


@app.command()
def lineage(
    asset_id: Annotated[str, typer.Argument(metavar="ASSET", help="An asset, by the start of its id.")],
    json: Json = False,
) -> None:
    """Where a picture came from: references, models, settings, run, decisions, deliveries."""
    with speaking():
        from asset_store.lineage.tree import tree_of
        from asset_store.reviewing.queue import find_asset
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            tree = tree_of(session, find_asset(session, asset_id)).as_json()
        emit(tree) if json else out.print(_drawn(tree))


def _drawn(tree: dict[str, Any]) -> Tree:
    root = Tree(f"[bold]{plain(tree['shot'])} #{tree['variant'] + 1}[/] of {plain(tree['campaign'])} for {plain(tree['brand'])}"
                f"  [dim]{tree['asset_id']}[/]  {plain(tree['review'])}, {plain(tree['availability'])}")  # fmt: skip
    for v in tree["versions"]:
        picture = root.add(f"version {v['number']}: {v['width_px']} × {v['height_px']} px, sha256 {v['sha256'][:16]}…")
        if gone := v["removed"]:
            picture.add(
                f"picture removed on {gone['at'][:10]} by the retention policy: {plain(gone['policy'])}, by {plain(gone['by'])}"
            )
        references = picture.add(f"references ({len(v['references'])})")
        for r in v["references"]:
            licence = r["licence"]
            until = f" until {licence['until']}" if licence.get("until") else ""
            leaf = references.add(
                f"{plain(r['key'])}  [dim]sha256 {r['sha256'][:16]}…[/]  {plain(r['role'] or '')}, weight {r['weight']:g}, "
                f"licence {plain(licence['name'])}{until}, {plain(r['state'])}"
            )
            if r["part"]:
                leaf.add(plain(f"{', '.join(r['part'])}: {r['chosen']}"))
            for e in r["embeddings"]:
                leaf.add(f"embedded by {plain(e['encoder'])}  [dim]{e['encoder_sha256'][:16]}…[/]")
        models = picture.add("models")
        for m in v["models"]:
            models.add(f"{plain(m['role'])}: {plain(m['name'])}  [dim]sha256 {m['sha256'][:16]}…[/]")
        s = v["settings"]
        settings = picture.add("settings")
        settings.add(f"prompt: {plain(s.get('prompt', ''))}")
        settings.add(
            ", ".join(f"{k} {plain(s[k])}" for k in ("seed", "steps", "scheduler", "guidance", "scale") if k in s)
        )
        for told in _conditions(s):
            settings.add(plain(told))
        run = v["run"]
        made = picture.add("run")
        made.add(
            f"asked for by {plain(run.get('requested_by', ''))} ({plain(run.get('trigger', ''))}), brief {run.get('brief_sha256', '')[:16]}…"
        )
        made.add(
            f"attempt {run.get('attempt')}, {plain(run.get('device', ''))} {plain(run.get('dtype', ''))}, {plain(run.get('made_at', ''))}"
        )
        versions = v["code"].get("versions", {})
        made.add("code: " + plain(", ".join(f"{k} {x}" for k, x in sorted(versions.items()))))
        checks = picture.add("checks")
        for c in v["checks"]:
            checks.add(f"{plain(c['outcome'])}: {plain(c['name'])}, {plain(c['message'])}")
        if v["decisions"]:
            decisions = picture.add("decisions")
            for d in v["decisions"]:
                said = f": {plain(d['reason'])}" if d["reason"] else ""
                decisions.add(f"{plain(d['verdict'])} at {plain(d['stage'])} by {plain(d['by'])}{said}")
        if v["deliveries"]:
            deliveries = picture.add("deliveries")
            for d in v["deliveries"]:
                deliveries.add(f"{plain(d['rendition'])} → {plain(d['address'])}")
    return root


def _conditions(settings: dict[str, Any]) -> list[str]:
    """What a picture was made with beside prompt and references, a line each."""
    from flows.recipe_words import told_of_adapter, told_of_lora, told_of_region, told_of_source

    lines = [
        f"control {c['kind']}: {c['picture']}, sha256 {c['sha256'][:16]}…, strength {c['strength']:g}, window {c['window']}"
        for c in settings.get("controls", ())
    ]
    lines += [told_of_adapter(name, said) for name, said in sorted(settings.get("adapters", {}).items())]
    for region in settings.get("regions", ()):
        hashed = f", sha256 {region['sha256'][:16]}…" if "sha256" in region else ""
        lines.append(f"region {told_of_region(region)}{hashed}")
    if (source := settings.get("source")) is not None:
        mask = f", mask sha256 {source['mask_sha256'][:16]}…" if "mask_sha256" in source else ""
        lines.append(f"starts from {told_of_source(source)}, sha256 {source['sha256'][:16]}…{mask}")
    if "guidance_window" in settings:
        lines.append(f"guidance window {settings['guidance_window']}")
    lines += [f"LoRA {told_of_lora(lora)}, sha256 {lora['sha256'][:16]}…" for lora in settings.get("loras", ())]
    if (own := settings.get("character_model")) is not None:
        lines.append(f"character model: {own['name']} version {own['version']}, sha256 {own['sha256'][:16]}…")
    if (preset := settings.get("preset")) is not None:
        lines.append(f"scale and window: preset version {preset['version']}")
    if (best := settings.get("best_of")) is not None:
        lines.append(f"kept as the best of {best['candidates']} candidates")
    return lines


@audit_app.command("verify")
def audit_verify(json: Json = False) -> None:
    """Check both hash chains, audit and lineage: a changed, removed or inserted row is named."""
    with speaking():
        from asset_store import audit
        from asset_store.lineage import record
        from flows.wiring import open_store

        with open_store() as store, store.database.transaction() as session:
            reports = {"audit": audit.verify(session), "lineage": record.verify_chain(session)}
        if json:
            emit({name: asdict(report) for name, report in reports.items()})
        else:
            for name, report in reports.items():
                told = (
                    "[green]whole[/]"
                    if report.broken is None
                    else f"[red]broken at row {report.broken}[/]: {plain(report.problem)}"
                )
                out.print(f"{name}: {report.rows} rows, {told}")
        raise typer.Exit(Exit.DONE if all(r.broken is None for r in reports.values()) else Exit.FAILED)


@app.command()
def recall(
    reference: Annotated[str, typer.Argument(help="A reference: its key in the library, or the start of its sha256.")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why its rights are taken back.")],
    by: By = None,
    json: Json = False,
) -> None:
    """Withdraw a reference: its queued jobs are cancelled and every released picture made from it is suspended."""
    with speaking():
        from flows.recall import withdraw
        from flows.wiring import os_user

        reports = withdraw(reference, by=by or os_user(), reason=reason)
        if json:
            emit([asdict(r) for r in reports])
            return
        for report in reports:
            suspended = sum(a.suspended for a in report.assets)
            out.print(f"[bold]{plain(report.key)}[/] is withdrawn: {len(report.assets)} pictures came of it, {suspended} suspended, "
                      f"{len(report.deliveries)} delivered files to call back")  # fmt: skip
            for d in report.deliveries:
                out.print(f"  {plain(d.address)}")


@app.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is found; otherwise only count it.")] = False,
    rejected: Annotated[
        bool,
        typer.Option("--rejected", help="Find pictures that stood rejected for longer than the policy keeps them."),
    ] = False,
    by: By = None,
    json: Json = False,
) -> None:
    """Find blobs that no row names, left by work that was killed between storing and recording; or rejected pictures that are kept no
    longer."""
    with speaking():
        from flows.garbage import collect
        from flows.retention import remove_rejected
        from flows.wiring import os_user

        if rejected:
            told = remove_rejected(delete=delete, by=by or os_user())
            emit(told) if json else out.print(
                f"{told['pictures']} pictures {told['policy']}, {told['kept']} more that something else names"
                + (f"; {told['removed']} removed" if delete else "; --delete removes their bytes")
                + (f", {told['undeleted']} could not be deleted and are tried again" if told["undeleted"] else "")
            )
            return
        report = collect(delete=delete)
        emit(report) if json else out.print(
            f"{report['blobs']} blobs, {report['garbage']} without a row"
            + (", deleted" if delete else "; --delete removes them")
        )


# ---------------------------------------------------------------------------- doctor


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `what_to_do` is empty where all is well."""

    part: str
    ok: bool
    found: str
    what_to_do: str
    took_s: float


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is configured, what can be reached, and what to do about what cannot."""
    with speaking():
        findings = [_examined(part, look) for part, look in _PARTS]
        if json:
            emit([asdict(f) for f in findings])
        else:
            shown = table("", "", "Part", "Found", "What to do")
            for f in findings:
                shown.add_row("[green]ok[/]" if f.ok else "[red]no[/]", f.part, plain(f.found), plain(f.what_to_do))
            out.print(shown)
        raise typer.Exit(Exit.DONE if all(f.ok for f in findings) else Exit.UNREACHABLE)


def _examined(part: str, look: Callable[[], str]) -> Finding:
    began = time.monotonic()
    try:
        found, ok, todo = look(), True, ""
    except Exception as error:  # whatever is wrong with a part is what doctor is there to say
        if Options.debug:
            traceback.print_exc()
        ok, found = False, str(error).splitlines()[0] if str(error) else type(error).__name__
        todo = getattr(error, "next_step", "") or "Run `onmodel --debug doctor` and read the traceback."
    return Finding(part, ok, found, todo, round(time.monotonic() - began, 2))


def _home() -> str:
    from flows.settings import load_settings

    home = load_settings().home
    home.mkdir(parents=True, exist_ok=True)
    return f"{home}, {shutil.disk_usage(home).free / 2**30:.0f} GiB free"


def _database() -> str:
    from flows.wiring import open_store

    with open_store() as store:
        return f"{store.database.describe()}, at migration {store.database.revision()}"


def _blobs() -> str:
    from flows.wiring import open_store

    with open_store() as store:
        store.blobs.check()
        return store.blobs.describe()


def _engine() -> str:
    from flows.configured import described
    from flows.settings import load_settings
    from flows.wiring import engine
    from ipadapter_engine.engines import device_of

    settings = load_settings()
    made = engine(settings)
    adapter = made.checkpoint.adapters.get("identity")
    told = f"{getattr(adapter, 'variant', 'own')} adapter" if adapter is not None else "no adapter"
    named = described(settings)
    return f"{made.family.title} on {device_of(made)}, {told}, encoder {made.encoder.name}" + (
        f"; set: {named}" if named else ""
    )


def _prefect() -> str:
    from flows.settings import prefect_api

    address = prefect_api()
    if address is None:
        return "embedded: every command runs its own; `prefect server start` shows the runs"
    import httpx

    httpx.get(f"{address.rstrip('/')}/health", timeout=5).raise_for_status()
    return f"server at {httpx.URL(address).copy_with(userinfo=b'')}"


def _sign_in() -> str:
    from asset_store.errors import ProviderUnreachable, SettingsInvalid
    from flows.settings import load_settings

    oidc = load_settings().oidc
    if oidc.issuer is None:
        return "by links alone; docs/people.md says how to sign in with a company's provider"
    from studio.api.company import Provider

    try:
        Provider(oidc).about()
    except ProviderUnreachable as error:
        told = "Check ONMODEL_OIDC__ISSUER, and that it can be reached from here."
        raise SettingsInvalid(f"{oidc.issuer} cannot be used: {error.why}", told) from None
    return f"by links, and with {oidc.name} at {oidc.issuer}"


_PARTS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("home", _home),
    ("database", _database),
    ("blobs", _blobs),
    ("engine", _engine),
    ("prefect", _prefect),
    ("sign-in", _sign_in),
)
