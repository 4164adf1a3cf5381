"""library.yaml: what is read, and that every problem is told at its place."""

from __future__ import annotations

from datetime import date

import pytest

from asset_store.errors import LibraryFileInvalid, Problem
from asset_store.library import LibraryFile, ReferenceRole, missing, parse_library, unlisted

WHOLE = """\
brand:
  name: acme-toys
  title: Acme Toys
licence: {name: house, holder: Acme, until: 2031-12-31}
palette: ["#FFF", '#1a2B3c']
rules:
  - never on black
characters:
  - name: Mara
    description: A fox with a red scarf.
    palette: ['#c0392b']
    rules: [always wears the scarf]
  - name: Old Tom
references:
  - file: mara/front.png
    character: Mara
    role: identity
    weight: 2
    tags: [front, smiling]
  - file: mara/für-immer.jpg
    character: Mara
    role: face
    licence:
      name: photographer
      until: "2027-01-01"
  - file: mood.webp
    role: style
"""


def problems_of(text: str) -> list[tuple[int, str, str]]:
    with pytest.raises(LibraryFileInvalid) as caught:
        parse_library(text, file="library.yaml")
    assert all(problem.file == "library.yaml" for problem in caught.value.problems)
    return [(problem.line, problem.field, problem.message) for problem in caught.value.problems]


@pytest.fixture(scope="module")
def whole() -> LibraryFile:
    return parse_library(WHOLE, file="library.yaml")


def test_a_whole_file_is_read(whole: LibraryFile) -> None:
    assert (whole.brand.name, whole.brand.title) == ("acme-toys", "Acme Toys")
    assert [character.name for character in whole.characters] == ["Mara", "Old Tom"]
    assert [reference.role for reference in whole.references] == [
        ReferenceRole.IDENTITY,
        ReferenceRole.FACE,
        ReferenceRole.STYLE,
    ]
    assert [reference.weight for reference in whole.references] == [2.0, 1.0, 1.0]


def test_colours_are_written_one_way(whole: LibraryFile) -> None:
    assert whole.palette == ("#ffffff", "#1a2b3c")


def test_a_reference_has_its_own_licence_or_the_librarys(whole: LibraryFile) -> None:
    ends = [whole.licence_of(reference).until for reference in whole.references]
    assert ends == [date(2031, 12, 31), date(2027, 1, 1), date(2031, 12, 31)]


def test_a_library_cannot_be_changed(whole: LibraryFile) -> None:
    with pytest.raises(ValueError, match="frozen"):
        whole.brand.name = "other"


def test_files_listed_but_not_there_are_missing(whole: LibraryFile) -> None:
    assert missing(whole, ["mood.webp", "x.png"]) == ["mara/front.png", "mara/für-immer.jpg"]


def test_pictures_there_but_not_listed_are_unlisted(whole: LibraryFile) -> None:
    assert unlisted(whole, ["z.PNG", "mood.webp", "library.yaml", "a/b.jpeg"]) == ["a/b.jpeg", "z.PNG"]


def edited(old: str, new: str) -> str:
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "line", "field", "part"),
    [
        (edited("name: acme-toys", "name: Acme Toys"), 2, "brand.name", "lower-case"),
        (edited("  name: acme-toys\n", ""), 1, "brand.name", "required"),
        (edited("name: acme-toys", "name: 7"), 2, "brand.name", "quotes"),
        (edited("'#1a2B3c'", "'red'"), 5, "palette[1]", "hex colour"),
        (edited("palette: ['#c0392b']", "palette:\n      - #c0392b"), 12, "characters[0].palette[0]", "quotes"),
        (edited("role: identity", "role: hero"), 17, "references[0].role", "'identity'"),
        (edited("weight: 2", "weight: -1"), 18, "references[0].weight", "greater than or equal to 0"),
        (edited("weight: 2", "weight: .nan"), 18, "references[0].weight", "finite"),
        (edited("weight: 2", "weight: true"), 18, "references[0].weight", "number"),
        (edited("weight: 2", "wieght: 2"), 18, "references[0].wieght", "not a field"),
        (edited("tags: [front, smiling]", "tags: front"), 19, "references[0].tags", "a list"),
        (edited('until: "2027-01-01"', "until: 2027-02-30"), 25, "references[1].licence.until", "cannot be read"),
        (edited('until: "2027-01-01"', "until: '2027-02-30'"), 25, "references[1].licence.until", "no such day"),
        (edited('until: "2027-01-01"', "until: 1700000000"), 25, "references[1].licence.until", "YYYY-MM-DD"),
        (edited('until: "2027-01-01"', "until: 2027-01-01 10:00:00"), 25, "references[1].licence.until", "YYYY-MM-DD"),
        (edited("    character: Mara", "    character: Marah"), 16, "references[0].character", "Mara, Old Tom"),
        (edited("    character: Mara\n", ""), 15, "references[0]", "needs a 'character'"),
        (edited("file: mood.webp", "file: mara/front.png"), 26, "references[2].file", "first in line 15"),
        (edited("file: mood.webp", "file: mara/fu\u0308r-immer.jpg"), 26, "references[2].file", "first in line 20"),
        (edited("file: mood.webp", "file: /etc/passwd"), 26, "references[2].file", "absolute"),
        (edited("file: mood.webp", "file: s3://b/x.png"), 26, "references[2].file", "absolute"),
        (edited("file: mood.webp", "file: a/../../x.png"), 26, "references[2].file", ".."),
        (edited("file: mood.webp", "file: a\\b.png"), 26, "references[2].file", "forward"),
        (edited("file: mood.webp", "file: moods/*.webp"), 26, "references[2].file", "pattern"),
        (edited("file: mood.webp", 'file: "a\\u202eb.png"'), 26, "references[2].file", "plain path"),
        (edited("name: Old Tom", "name: mara"), 13, "characters[1].name", "already"),
        (edited("  title: Acme Toys", "  title: Acme Toys\n  title: Acme"), 4, "brand.title", "twice"),
        (edited("licence: {name: house, holder: Acme, until: 2031-12-31}\n", ""), 14, "references[0]", "no licence"),
        (edited("title: Acme Toys", "title: !!python/object/apply:os.system [x]"), 3, "brand.title", "text"),
        (edited("title: Acme Toys", "title: !shout hello"), 3, "brand.title", "cannot be read"),
        (edited("title: Acme Toys", "<<: {title: x}"), 3, "brand", "merge"),
    ],
)
def test_a_problem_is_told_at_its_place(text: str, line: int, field: str, part: str) -> None:
    found = problems_of(text)
    assert (found[0][0], found[0][1]) == (line, field)
    assert part in found[0][2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("just text", 1),
        ("- a\n- b\n", 1),
        ("brand: {name: a\nrules: [", 2),
        ("brand:\n  name: a\n\tx: b\n", 3),
        ("brand:\n  name: a\n---\nbrand: {}\n", 3),
        ("brand:\n  name: \x07\n", 2),
        ("brand: *nobody\n", 1),
    ],
)
def test_what_is_no_library_is_told_with_its_line(text: str, line: int) -> None:
    assert problems_of(text)[0][0] == line


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = WHOLE.replace("acme-toys", "ACME").replace("role: face", "role: fase").replace("mood.webp", "../mood.webp")
    text = text.replace("weight: 2", "weight: 2\n    weight: 3").replace(
        "    character: Mara", "    character: Mora", 1
    )
    fields = [field for _, field, _ in problems_of(text)]
    assert fields == [
        "brand.name",
        "references[0].character",
        "references[0].weight",
        "references[1].role",
        "references[2].file",
    ]


def billion_laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        billion_laughs(9),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 5_000,
        "a: " + "{a: " * 1_000,
        "\n".join(["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3_000)]),
        "rules: [" + "x" * 1_100_000 + "]",
    ],
    ids=["laughs", "own-list", "own-map", "deep-list", "deep-map", "long-chain", "large"],
)
def test_a_text_that_grows_is_refused(text: str) -> None:
    found = problems_of(text)
    assert len(found) == 1
    assert "Refused" in found[0][2] or "larger than" in found[0][2]


def test_an_alias_may_save_typing() -> None:
    text = WHOLE.replace("licence: {", "licence: &house {").replace("role: style", "role: style\n    licence: *house")
    library = parse_library(text, file="library.yaml")
    assert library.references[2].licence == library.licence


def test_a_key_cannot_disguise_itself_in_a_report() -> None:
    ((_, field, message),) = problems_of(WHOLE + '"a\\u202eb\\n": 1\n')
    assert (field + message).isprintable()


def test_a_problem_is_printed_as_compilers_do() -> None:
    assert str(Problem("library.yaml", 3, "brand.name", "Wrong.")) == "library.yaml:3: brand.name: Wrong."
