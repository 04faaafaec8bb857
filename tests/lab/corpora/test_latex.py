"""Laws of the LaTeX source: which bundles are papers, and which of their files make up the text."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pytest

from block_recurrent.data.documents import DataError
from block_recurrent.lab.corpora.entries import Content, Unusable, listed
from block_recurrent.lab.corpora.latex import LatexBundles, arxiv_id

MAIN = "\\documentclass{article}\n\\begin{document}\n%s\n\\end{document}\n"
PAPER = MAIN % "text"


def as_bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def tar(files: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(as_bytes(content))
            archive.addfile(info, io.BytesIO(as_bytes(content)))
    return buffer.getvalue()


def tar_gz(files: Mapping[str, str | bytes]) -> bytes:
    return gzip.compress(tar(files))


def put(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(as_bytes(content))
    return root


def read(directory: Path, **options) -> dict[str, Content]:
    return {entry.id: entry.read() for entry in LatexBundles(directory, **options).entries()}


@pytest.fixture(params=["tar.gz", "folder"])
def paper(request, tmp_path):
    """Returns the content of a paper with these files, as an archive and as a folder."""

    def build(files: dict[str, str | bytes]) -> Content:
        if request.param == "folder":
            put(tmp_path / "0704.0001", files)
        else:
            put(tmp_path, {"0704.0001.tar.gz": tar_gz(files)})
        return read(tmp_path)["0704.0001"]

    return build


def order(content: Content, files: dict[str, str | bytes]) -> list[str]:
    """Returns the names of the files, in the order in which the text has them."""
    names, text = [], content.text
    while text:
        name = next(name for name, file in files.items() if (text + "\n").startswith(f"{file}\n"))
        names.append(name)
        text = text[len(files[name]) + 1 :]
    return names


def test_inputs_follow_the_main_file_depth_first_each_once(paper):
    files = {
        "z.tex": MAIN % "\\input{a}\\include{b/b.tex} \\input c \\subfile{d}\\input{a}",
        "a.tex": "A \\input{b/deep}",
        "b/b.tex": "B",
        "b/deep.tex": "DEEP \\input{z}\\input{a}",
        "c.tex": "C",
        "d.tex": "D",
    }
    content = paper(files)
    assert order(content, files) == ["z.tex", "a.tex", "b/deep.tex", "b/b.tex", "c.tex", "d.tex"]
    assert content.text == "\n".join(files[name] for name in order(content, files))
    assert content.skipped == {} and not content.repaired


@pytest.mark.parametrize(
    "command",
    [
        "\\input{a}",
        "\\input a.tex\n",
        '\\input{"a"}',
        '\\input "a"',
        "\\input  { a }",
        "\\\\\\input{a}",
        "50\\% \\input{a}",
        "\\\\ % no \n\\input{a}",
        "% no\r\\input{a}",
        "\\include{a}",
        "\\subfile{a}",
        "\\import{}{a}",
        "\\import*{./}{a.tex}",
        "\\subimport{./}{ a }",
        "\\subincludefrom{.}{a}",
        "\\InputIfFileExists{a}{}{}",
        "\\includeonly{b}\\input{a}",
        "\\includeonly{b, a}\\include{a}",
        "%\\includeonly{b}\n\\include{a}",
    ],
)
def test_every_way_to_write_an_input_counts(paper, command):
    files = {"m.tex": MAIN % command, "a.tex": "A"}
    assert order(paper(files), files) == ["m.tex", "a.tex"]


@pytest.mark.parametrize(
    "command",
    [
        "%\\input{a}",
        "x % \\input{a}",
        "\\\\%\\input{a}",
        "\\inputs{a}",
        "\\includegraphics{a}",
        "\\input{b}",
        "\\input{}",
        "\\input#1",
        "\\input@a",
        "input{a}",
        "\\imports{}{a}",
        "\\import{b}{a}",
        "\\includeonly{b}\\include{a}",
    ],
)
def test_what_is_never_input_is_skipped_and_counted(paper, command):
    files = {"m.tex": MAIN % command, "a.tex": "A"}
    content = paper(files)
    assert content.text == files["m.tex"]
    assert content.skipped == {"never input": 1}


def test_imports_lead_into_folders_whose_files_input_their_neighbours(paper):
    files = {
        "m.tex": MAIN % "\\import{sec/}{intro}\\subimport{sec}{end}",
        "sec/intro.tex": "I \\input{more}",
        "sec/more.tex": "M",
        "sec/end.tex": "E",
    }
    assert order(paper(files), files) == ["m.tex", "sec/intro.tex", "sec/more.tex", "sec/end.tex"]


@pytest.mark.parametrize("name", ["paper.ltx", "paper.LaTeX", "paper"])
def test_a_main_file_may_be_called_otherwise(paper, name):
    files = {name: MAIN % "\\input{a}", "a.tex": "A", "README": "no TeX"}
    assert order(paper(files), files) == [name, "a.tex"]


def test_a_paper_that_loses_most_of_its_tex_is_counted(paper):
    files = {"m.tex": MAIN % "x", "a.tex": "A" * 1000}
    reason = "more than half of the TeX of a paper"
    assert paper(files).skipped == {"never input": 1, reason: 1}
    assert paper({**files, "a.tex": "A"}).skipped == {"never input": 1}


def test_paths_lead_from_the_main_file_the_root_and_the_including_file_never_outside(tmp_path):
    files = {
        "src/m.tex": MAIN % "\\input{s/a}\\input{root}\\input{../up}\\input{../../secret}",
        "src/s/a.tex": "A \\input{s/b} \\input{c}",
        "src/s/b.tex": "B",
        "src/s/c.tex": "C",
        "root.tex": f"ROOT \\input{{{tmp_path}/secret}}\\input{{../secret}}",
        "up.tex": "UP",
    }
    put(tmp_path, {"secret.tex": "SECRET"})
    put(tmp_path / "papers/p", files)
    content = read(tmp_path / "papers")["p"]
    names = [f"src/{name}.tex" for name in ("m", "s/a", "s/b", "s/c")]
    assert order(content, files) == [*names, "root.tex", "up.tex"]


def test_only_what_is_input_by_name_counts_beside_tex_files(paper):
    files = {
        "m.tex": MAIN % "\\input{m.bbl}\\input{fig.pstex_t}\\input{plot.eps}",
        "m.bbl": "BBL",
        "n.bbl": "NO",
        "fig.pstex_t": "FIG",
        "plot.eps": "%!PS",
        "x.sty": "STYLE",
    }
    content = paper(files)
    assert order(content, files) == ["m.tex", "m.bbl", "fig.pstex_t"]
    assert content.skipped == {}


def test_tex_is_added_before_a_name_is_taken_as_it_is(paper):
    files = {"m.tex": MAIN % "\\input{a.b}", "a.b": "NO", "a.b.tex": "YES"}
    assert order(paper(files), files) == ["m.tex", "a.b.tex"]


@pytest.mark.parametrize(
    "main, other",
    [
        ({"z.tex": PAPER}, {"a.tex": "\\documentclass{x}"}),
        ({"z.tex": PAPER}, {"a.tex": "\\begin{document}"}),
        ({"z.tex": PAPER}, {"a.tex": "%\\documentclass{x}\n%\\begin{document}" + "long" * 99}),
        ({"z.tex": PAPER}, {"a/a.tex": PAPER + "long" * 99}),
        ({"z.tex": PAPER + "more"}, {"a.tex": PAPER}),
        ({"a.tex": PAPER}, {"b.tex": PAPER}),
        ({"z.tex": "\\documentstyle{x}\\begin {document}"}, {"a.tex": "\\begin{document}" * 9}),
        ({"z.tex": "\\begin{document}"}, {"a.tex": "\\documentclass{x}" * 9}),
        ({"z.tex": "\\documentclass{x}"}, {"a.tex": "\\magnification" * 9}),
        ({"z.tex": "\\magnification" * 9}, {"a.tex": "\\bye"}),
        ({"z.TEX": PAPER}, {"a.tex": "a" * 999}),
    ],
)
def test_the_main_file_follows_the_rule(paper, main, other):
    files = main | other
    content = paper(files)
    assert content.text == next(iter(main.values()))
    assert content.skipped["never input"] == 1


def test_among_main_files_the_one_that_inputs_most_wins(paper):
    files = {"a.tex": PAPER + "x" * 20, "b.tex": MAIN % "\\input{c}", "c.tex": "c" * 100}
    assert order(paper(files), files) == ["b.tex", "c.tex"]


def test_binary_and_empty_files_are_skipped_and_counted(paper):
    files = {
        "m.tex": MAIN % "\\input{e}\\input{n}\\input{x.dat}\\input{e}",
        "e.tex": " \n",
        "n.tex": "a\0b",
        "x.dat": "\0",
        "y.dat": "\0",
    }
    content = paper(files)
    assert content.text == files["m.tex"]
    assert content.skipped == {"empty": 1, "binary": 2}


def test_each_file_is_utf8_or_else_latin1(paper):
    files = {"m.tex": MAIN % "é \\input{a}", "a.tex": "ü".encode("latin-1")}
    content = paper(files)
    assert content.text == files["m.tex"] + "\nü" and content.repaired
    assert not paper(files | {"a.tex": "ü", "never.tex": b"\xff"}).repaired


@pytest.mark.parametrize(
    "files, reason",
    [
        ({"readme.txt": "\\documentclass", "b.sty": "x"}, "no TeX file"),
        ({"a.tex": "", "b.tex": "\0"}, "no TeX file"),
        ({}, "no TeX file"),
        ({"a.pdf": "%PDF-1.4", "b.PDF": "%PDF"}, "PDF only"),
        ({"fig.ps": "%!PS \\x"}, "no TeX file"),
        ({"main.py": 'print("a\\nb\\tc")'}, "no TeX file"),
        ({"notes.tex": "What was said on Monday."}, "no LaTeX"),
        ({"a.tex": "One.", "sub/b.TEX": "Two, 50\\% of it.", "c.sty": "\\def\\x{}"}, "no LaTeX"),
    ],
)
def test_bundles_without_tex_are_unusable(tmp_path, files, reason):
    put(tmp_path, {"0704.0001.tar.gz": tar_gz(files)})
    with pytest.raises(Unusable, match=f"^{reason}$"):
        read(tmp_path)


def test_unusable_papers_count_what_they_skipped(tmp_path):
    put(tmp_path, {"0704.0001.tar.gz": tar_gz({"a.tex": "", "../b.tex": PAPER})})
    with pytest.raises(Unusable) as error:
        read(tmp_path)
    assert error.value.skipped == {"empty": 1, "unsafe name": 1}


def test_links_and_unsafe_members_are_counted_with_the_paper(tmp_path):
    put(tmp_path, {"a.tar.gz": tar_gz({"a.tex": PAPER, "../b.tex": "x", "c.tex": "C"})})
    assert read(tmp_path)["a"].skipped == {"unsafe name": 1, "never input": 1}
    folder = put(tmp_path / "papers", {"p/a.tex": MAIN % "\\input{b}"})
    (folder / "p/b.tex").symlink_to(put(tmp_path / "out", {"b.tex": "secret"}) / "b.tex")
    content = read(folder)["p"]
    assert "secret" not in content.text and content.skipped == {"link": 1}


@pytest.mark.parametrize(
    "text, usable",
    [
        (PAPER, True),
        ("\\magnification 1200\n\\bye", True),
        ("%!TEX root = a.tex\n\\x", True),
        ('print("a\\nb\\\\n")\n', False),
        ("C:\\temp\\new", False),
        ("%!PS-Adobe \\x", False),
        ("%!\n \\x", False),
        (" <html>\\x", False),
        ("withdrawn", False),
        ("\0\\x", False),
        ("", False),
    ],
)
def test_a_compressed_single_file_is_tex_by_its_content(tmp_path, text, usable):
    put(tmp_path, {"0704.0001.gz": gzip.compress(text.encode())})
    if usable:
        assert read(tmp_path)["0704.0001"].text == text
    else:
        with pytest.raises(Unusable, match="^no TeX file$"):
            read(tmp_path)


def test_pdfs_are_unusable_unless_their_source_is_there(tmp_path):
    source = gzip.compress(PAPER.encode())
    put(tmp_path, {"0704.0001.pdf": "%PDF", "0704.0002.pdf": "%PDF", "0704.0002v2.gz": source})
    put(tmp_path, {"0704.0003.gz": gzip.compress(b"%PDF-1.5")})
    bundles = LatexBundles(tmp_path)
    entries = {entry.id: entry for entry in bundles.entries()}
    assert list(entries) == ["0704.0001", "0704.0002", "0704.0003"]
    assert entries["0704.0002"].read().text == PAPER
    for paper in ("0704.0001", "0704.0003"):
        with pytest.raises(Unusable, match="^PDF only$"):
            entries[paper].read()
    assert bundles.left_out == {"PDF beside its source": 1}


@pytest.mark.parametrize(
    "path, expected",
    [
        ("0704.0001", "0704.0001"),
        ("0704.0001v2", "0704.0001"),
        ("1501/1501.00001v12", "1501.00001"),
        ("arXiv-2101.12345v1", "2101.12345"),
        ("math0101001", "math/0101001"),
        ("0101/hep-th0101001v3", "hep-th/0101001"),
        ("math/0101001", "math/0101001"),
        ("x/math.GT/0101001v1", "math/0101001"),
        ("arXiv-astro-ph0101001v1", "astro-ph/0101001"),
        ("paper0101001", None),
        ("0101001", None),
        ("math010100", None),
        ("0704.00010001", None),
        ("0704.0001-src", None),
        ("0704.0001/src", None),
    ],
)
def test_arxiv_ids_come_from_paths(path, expected):
    assert arxiv_id(path) == expected


def test_papers_are_archives_and_folders_and_ids_are_paths_without_extensions(tmp_path):
    single, archive = gzip.compress(PAPER.encode()), tar_gz({"m.tex": PAPER})
    put(
        tmp_path,
        {
            "0704/0704.0001.gz": single,
            "0704/0704.0002v1.tar.gz": archive,
            "0704/0704.0003v1/src/m.tex": PAPER,
            "math/0101001/m.tex": PAPER,
            "direct/src/m.tex": PAPER,
            "direct/figures/f.eps.gz": single,
            "some/where/deep/m.tex": PAPER,
            "some/where/deep/sub/n.tex": PAPER,
            "some/own.name.tgz": archive,
            "some/own.tar": gzip.decompress(archive),
            "b.tex.gz": single,
        },
    )
    contents = read(tmp_path)
    assert list(contents) == [
        "b",
        "direct",
        "0704.0001",
        "0704.0002",
        "0704.0003",
        "math/0101001",
        "some/own.name",
        "some/own",
        "some/where/deep",
    ]
    assert {content.text for content in contents.values()} == {PAPER}
    assert contents["math/0101001"].link == "https://arxiv.org/abs/math/0101001"
    assert contents["b"].link == "" and contents["b"].year == 0


def test_what_is_not_a_bundle_is_left_out_and_counted(tmp_path):
    put(tmp_path, {"a.gz": gzip.compress(PAPER.encode()), "loose.tex": PAPER, "x/b.gz": b""})
    put(tmp_path, {"x/readme": "", "x/f.eps.gz": b"", "x/some.pdf": "%PDF"})
    (tmp_path / "link.gz").symlink_to("a.gz")
    (tmp_path / "folder").symlink_to("x")
    bundles = LatexBundles(tmp_path)
    for _ in range(2):
        assert [entry.id for entry in bundles.entries()] == ["a", "x/b"]
        assert bundles.left_out == {"not a source bundle": 4, "link": 2}


@pytest.mark.parametrize(
    "one, other",
    [
        ("0704.0001v1.gz", "0704.0001v2.gz"),
        ("a.tar.gz", "a.tgz"),
        ("math0101001.gz", "math/0101001.gz"),
    ],
)
def test_two_papers_with_one_id_are_an_error_that_names_both(tmp_path, one, other):
    put(tmp_path, {one: b"x", other: b"x"})
    with pytest.raises(DataError) as error:
        list(listed(LatexBundles(tmp_path)))
    assert one in str(error.value) and other in str(error.value)


def test_damaged_archives_are_errors(tmp_path):
    put(tmp_path, {"0704.0001.tar.gz": tar_gz({"m.tex": PAPER})[:-30]})
    with pytest.raises(DataError, match=r"0704\.0001\.tar\.gz"):
        read(tmp_path)


def test_a_tar_file_of_papers_is_what_it_unpacks_to(tmp_path):
    files = {
        "0001/astro-ph0001001.gz": gzip.compress((MAIN % "one").encode()),
        "0001/astro-ph0001002.tar.gz": tar_gz({"m.tex": MAIN % "\\input{a}", "a.tex": "A"}),
        "0001/astro-ph0001002.pdf": b"%PDF",
        "0001/own.name.gz": gzip.compress((MAIN % "own").encode()),
        "0001/figure.eps.gz": b"",
        "manifest.xml": b"<arXivSRC/>",
    }
    sources = [
        LatexBundles(
            put(tmp_path / "loose", {f"src/{name}": file for name, file in files.items()})
        ),
        LatexBundles(put(tmp_path / "bulk", {"src/arXiv_src_0001_001.tar": tar(files)})),
    ]
    loose, bulk = ({e.id: e.read() for e in source.entries()} for source in sources)
    assert bulk == loose
    assert list(bulk) == ["astro-ph/0001001", "astro-ph/0001002", "src/0001/own.name"]
    assert bulk["astro-ph/0001002"].text == MAIN % "\\input{a}" + "\nA"
    assert sources[1].left_out == sources[0].left_out
    assert sources[1].left_out == {"not a source bundle": 2, "PDF beside its source": 1}


def test_a_tar_file_of_one_paper_may_hold_archives(tmp_path):
    data = {"data.tar.gz": tar_gz({"d.csv": "1"})}
    put(tmp_path, {"a.tar": tar({"sub/m.tex": PAPER, **data})})
    put(tmp_path, {"0704.0001.tar": tar({"main": PAPER, **data})})
    assert {paper: content.text for paper, content in read(tmp_path).items()} == {
        "0704.0001": PAPER,
        "a": PAPER,
    }


def test_a_damaged_tar_file_of_papers_ends_where_the_damage_is(tmp_path):
    papers = {f"0704.000{number}.gz": gzip.compress(PAPER.encode()) for number in range(3)}
    put(tmp_path, {"bulk.tar": tar(papers)[: 2 * 1024 + 100]})
    ids = ["0704.0000", "0704.0001", "bulk.tar"]
    for _ in range(2):
        entries = list(LatexBundles(tmp_path).entries())
        assert [entry.id for entry in entries] == ids
        assert [entry.damage is None for entry in entries] == [True, True, False]
    with pytest.raises(DataError, match=r"bulk\.tar cannot be read: .* --skip_damaged"):
        list(listed(LatexBundles(tmp_path)))
    assert [e.id for e in listed(LatexBundles(tmp_path), skip_damaged=True)] == ids


def test_a_tar_file_of_papers_is_read_a_paper_at_a_time(tmp_path):
    text, papers = PAPER.encode() + b"%", {}
    for number in range(100):
        papers[f"0704.{number:04}.gz"] = gzip.compress(text + os.urandom(2**13).hex().encode())
    put(tmp_path, {"bulk.tar": tar(papers)})
    papers.clear()
    tracemalloc.start()
    for entry in reversed(list(LatexBundles(tmp_path).entries())):
        assert len(entry.read().text) == len(text) + 2**14
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "bulk.tar").stat().st_size / 2


def test_a_long_chain_of_inputs_is_read(paper):
    files = {"m.tex": MAIN % "\\input 0"}  # longer than Python lets functions call themselves
    files |= {f"{n}.tex": f"{n}\\input{{{n + 1}}}" for n in range(1100)}
    assert paper(files).text == "\n".join(files.values())


RECORDS = [
    {
        "id": "0704.0001",
        "title": "A\n  B",
        "categories": "cs.LG math.GT",
        "update_date": "2008-11-26",
    },
    {"id": "math/0101001", "title": "\ud800", "categories": "math-ph", "update_date": ""},
    {"id": "0704.0002", "title": "C", "categories": "hep-th", "extra": [1]},
    {"id": "9999.9999", "title": 1},
]
PAPERS = ["0704.0001", "0704.0002", "0704.0003", "math0101001"]


def papers(root: Path) -> Path:
    return put(root, {f"{name}.gz": gzip.compress(PAPER.encode()) for name in PAPERS})


def metadata(root: Path, lines: list[str], compressed: bool = False) -> Path:
    data = "\n".join(lines).encode()
    file = root / ("snapshot.json.gz" if compressed else "snapshot.json")
    file.write_bytes(gzip.compress(data) if compressed else data)
    return file


@pytest.mark.parametrize("compressed", [False, True])
def test_titles_and_years_come_from_the_metadata(tmp_path, compressed):
    file = metadata(papers(tmp_path), [json.dumps(each) for each in RECORDS], compressed)
    contents = read(tmp_path, metadata=file)
    assert {paper: (each.title, each.year) for paper, each in contents.items()} == {
        "0704.0001": ("A B", 2008),
        "0704.0002": ("C", 0),
        "0704.0003": ("", 0),
        "math/0101001": ("\ufffd", 0),
    }


@pytest.mark.parametrize(
    "categories, kept",
    [
        (["math."], ["0704.0001"]),
        (["math"], ["0704.0001", "math/0101001"]),
        (["cs.LG", "hep-"], ["0704.0001", "0704.0002"]),
        (["ath."], []),
    ],
)
def test_categories_match_the_start_of_any_category(tmp_path, categories, kept):
    file = metadata(papers(tmp_path / "papers").parent, [json.dumps(each) for each in RECORDS])
    bundles = LatexBundles(tmp_path / "papers", metadata=file, categories=categories)
    assert [entry.id for entry in bundles.entries()] == kept
    left_out = {"no metadata": 1} | ({"other category": 3 - len(kept)} if len(kept) < 3 else {})
    assert bundles.left_out == left_out


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"title": "a"}',
        '{"id": 1}',
        '{"id": "0704.0001", "title": 1}',
        '{"id": "0704.0001", "categories": ["a"]}',
        '{"id": "0704.0001", "update_date": "1"}',
        json.dumps(RECORDS[2]),
        "\udcff",
        "[" * 100_000,
    ],
)
def test_a_bad_line_of_metadata_is_an_error_that_names_it(tmp_path, line):
    file = metadata(papers(tmp_path), [json.dumps(RECORDS[2]), ""])
    file.write_bytes(file.read_bytes() + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"snapshot\.json, line 2: .*\.$"):
        read(tmp_path, metadata=file)


def test_truncated_metadata_is_an_error_that_names_it(tmp_path):
    file = metadata(papers(tmp_path), [json.dumps(each) for each in RECORDS], compressed=True)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"snapshot\.json\.gz cannot be read"):
        read(tmp_path, metadata=file)


def test_options_that_cannot_be_met_are_errors_at_once(tmp_path):
    with pytest.raises(DataError, match=r"^\S+/none is not a file: .*\.$"):
        LatexBundles(tmp_path, metadata=tmp_path / "none")
    with pytest.raises(DataError, match=r"^\S+/none is not a directory: .*\.$"):
        LatexBundles(tmp_path / "none")
    with pytest.raises(DataError, match=r"^categories \('math\.',\) need metadata"):
        LatexBundles(tmp_path, categories=["math."])


def test_options_are_json_without_paths(tmp_path):
    file = metadata(tmp_path, [])
    bundles = LatexBundles(tmp_path, metadata=file, categories=["math."])
    options = json.loads(json.dumps(bundles.options))
    assert options["categories"] == ["math."] and options["metadata"] is True
    assert str(tmp_path) not in json.dumps(options) and bundles.name == "arxiv"
