r"""Papers from the LaTeX sources that arXiv gives out: one document a bundle.

The text of a paper is its main file, then every file it inputs, joined by newlines.

* The main file has `\documentclass` or `\documentstyle`, and `\begin{document}`. Without such a
  file it is one with `\begin{document}`, else one with a class, else any TeX file. Among several
  the least deep folder wins, then the most characters with what it inputs itself, then the first
  path.
* Inputs follow in the order of `\input`, `\include`, `\subfile`, `\import` and their relatives,
  depth first, each file once; after a `%` they do not count. If the main file has `\includeonly`,
  `\include` follows what that lists. A name is looked up with `.tex` added and then as it is, in
  the folder of the main file, in the root and in the folder of the including file, never outside.
* TeX files that are never input, binary and empty ones are skipped. A paper of which more than half
  of the TeX is never input is also counted by itself. A file that is not UTF-8 is read as
  Windows-1252, or else as Latin-1, and the paper counts as repaired.

A TeX file is one called `*.tex`, `*.ltx` or `*.latex`, or one without an ending that has a document
class. Where a bundle has a single file, that is also TeX if it has a
command of TeX's own (`_TEX_COMMAND`). A bundle is left out as "no TeX file" if it has none, and as
"no LaTeX" if no TeX file in it has any command, such as a folder of plain text called `*.tex`.
"""

import codecs
import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from block_recurrent.data.documents import DataError, replace_lone_surrogates
from block_recurrent.data.json_lines import json_lines, parse_record
from block_recurrent.lab.corpora.archives import (
    MEMBER_BYTES,
    MEMBERS,
    PDF_ONLY,
    TOTAL_BYTES,
    Part,
    children,
    files_below,
    read_archive,
    tar_parts,
)
from block_recurrent.lab.corpora.entries import Content, Entry, Unusable, damaged

_ARCHIVES = (
    "acc-phys|adap-org|alg-geom|ao-sci|astro-ph|atom-ph|bayes-an|chao-dyn|chem-ph|cmp-lg|comp-gas|"
    "cond-mat|cs|dg-ga|funct-an|gr-qc|hep-ex|hep-lat|hep-ph|hep-th|math|math-ph|mtrl-th|nlin|"
    "nucl-ex|nucl-th|patt-sol|physics|plasm-ph|q-alg|q-bio|quant-ph|solv-int|supr-con"
)
_NEW_ID = re.compile(r"(?:.*/)?(?:arXiv-)?(\d{4}\.\d{4,5})(?:v\d+)?")
_OLD_ID = re.compile(rf"(?:.*/)?(?:arXiv-)?({_ARCHIVES})(?:\.[A-Za-z-]+)?[/_]?(\d{{7}})(?:v\d+)?")
_EXTENSION = re.compile(r"(?:\.tar\.gz|\.tgz|\.tar|(?:\.tex)?\.gz|\.pdf)$")
_FIGURE = re.compile(
    r"\.(e?psi?|epsf|pdf|png|jpe?g|gif|svg|tiff?|bmp|mp4|avi|mov|mpe?g|zip|gz|tar|[to]tf|pfb)$",
    re.I,
)
_CONTROL_WORD = re.compile(r"\\[A-Za-z]")
# What a program's source code, with its \n and \t, does not have.
_TEX_COMMAND = re.compile(
    r"\\(documentclass|documentstyle|usepackage|begin|end|section|input|magnification|bye|def"
    r"|centerline|[hv]s(?:ize|kip)|[hv]box|noindent|medskip|bigskip|proclaim)(?![A-Za-z])|%\s*!TEX"
)
_OTHER_LANGUAGE = re.compile(r"\s*(%!(PS|\s)|<)")  # PostScript and HTML, but not %!TEX
_CLASS = re.compile(r"\\document(?:class|style)(?![A-Za-z])")
_BEGIN = re.compile(r"\\begin\s*\{document\}")
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\r\n]*")
_INPUT = re.compile(
    r"\\(input|include|subfile|subfileinclude|InputIfFileExists|@input)(?![A-Za-z@])\s*\{([^{}]*)\}"
    r"|\\(input)(?![A-Za-z@])\s*(\"[^\"\r\n]+\"|[^\s\\{}%#\"]+)"
    r"|\\((?:sub)?(?:import|inputfrom|includefrom))\*?(?![A-Za-z@])"
    r"\s*\{([^{}]*)\}\s*\{([^{}]*)\}"
)
_INCLUDE_ONLY = re.compile(r"\\includeonly\s*\{([^{}]*)\}")
_BLANK = ' \t\r\n"'


class _Metadata(NamedTuple):
    title: str = ""
    year: int = 0
    categories: tuple[str, ...] = ()


class _Found(NamedTuple):
    """A paper, or a tar file of papers that is damaged behind those that were found in it.

    Attributes:
      name: the path below the directory; of a paper in a tar file, where it would be unpacked.
      place: where it is.
      damage: the damage of the tar file.
    """

    name: str
    place: Path | Part
    damage: DataError | None = None


class LatexBundles:
    """The papers in a directory of arXiv source bundles; the module says what their texts are.

    A paper is a `.tar.gz`, `.tgz`, `.tar` or `.gz` file at any depth, or a folder: one that holds a
    TeX file directly, one whose path is an arXiv id, or a direct child of the directory, unless
    there is an archive or a folder named by an arXiv id below it. A `.tar` file of such files, the
    form of arXiv's bulk downloads, counts as if it were unpacked where it lies. A PDF named by an
    arXiv id is a paper without a source. Anything else, and every link, is left out.

    The id of a paper is its arXiv id without version, "0704.0001" or "math/0101001", where its path
    ends in one, possibly after "arXiv-"; otherwise its relative path without extensions.

    Args:
      directory: the directory that holds the bundles.
      metadata: JSON-lines file, possibly `.gz`, of records with "id", "title", "categories" (a
        string separated by spaces) and "update_date", whose year is taken: arXiv's snapshot format.
      categories: if any, keeps a paper only if one of its categories starts with one of these
        strings: "math." keeps math.GT, "math" math-ph too. Needs `metadata`.

    Raises:
      DataError: the directory or the metadata does not exist, or there are categories without
        metadata.
    """

    name = "arxiv"
    wanted = (
        "papers in LaTeX: archives (.tar.gz, .tgz, .tar, .gz) and folders with TeX files in them"
    )
    decision = "splits: by a hash of each paper's id"

    def __init__(
        self, directory: Path, *, metadata: Path | None = None, categories: Sequence[str] = ()
    ):
        self._directory, self._metadata = directory, metadata
        self._categories = tuple(categories)
        self.options: Mapping[str, object] = {
            "metadata": metadata is not None,
            "categories": list(categories),
            "member_bytes": MEMBER_BYTES,
            "total_bytes": TOTAL_BYTES,
            "members": MEMBERS,
        }
        self.left_out: Counter[str] = Counter()
        if not directory.is_dir():
            raise DataError(f"{directory} is not a directory: give the one that holds the bundles.")
        if metadata is not None and not metadata.is_file():
            raise DataError(f"{metadata} is not a file: give the metadata, or none.")
        if self._categories and metadata is None:
            raise DataError(f"categories {self._categories} need metadata: give its file too.")

    def entries(self) -> Iterator[Entry]:
        """Lists the papers by path: files, folders that are papers, then what is in the others.

        Raises:
          DataError: the metadata cannot be read.
        """
        self.left_out = Counter()
        papers = self._papers()
        records: dict[str, _Metadata] = {}
        if self._metadata is not None:
            records = _read_metadata(self._metadata, frozenset(paper for paper, _ in papers))
        for paper, found in papers:
            record = records.get(paper, _Metadata())
            if found.damage:
                yield damaged(paper, found.damage)
            elif not self._categories or any(
                category.startswith(self._categories) for category in record.categories
            ):
                yield Entry(paper, partial(_read, paper, found.place, record), str(found.place))
            else:
                self.left_out["other category" if paper in records else "no metadata"] += 1

    def _papers(self) -> list[tuple[str, _Found]]:
        """Returns the papers with their ids; a PDF beside its source is left out."""
        found = [
            (_id_of(each), each)
            for each in _bundles(self._directory, self.left_out)
            if self._metadata is None
            or isinstance(each.place, Part)
            or not each.place.samefile(self._metadata)
        ]
        sources = {paper for paper, each in found if not _is_pdf(each.name)}
        papers = [pair for pair in found if not _is_pdf(pair[1].name) or pair[0] not in sources]
        self.left_out.update(["PDF beside its source"] * (len(found) - len(papers)))
        return papers


def _id_of(found: _Found) -> str:
    is_folder = isinstance(found.place, Path) and found.place.is_dir()
    stem = found.name if is_folder or found.damage else _EXTENSION.sub("", found.name)
    return arxiv_id(stem) or os.fsencode(stem).decode("utf-8", "replace")


def _read(paper: str, place: Path | Part, record: _Metadata) -> Content:
    if _is_pdf(place.name):
        raise Unusable(PDF_ONLY)
    unpacked = read_archive(place, wanted=lambda name: not _FIGURE.search(name))
    names = [*unpacked.files, *unpacked.unread]
    if names and all(name.lower().endswith(".pdf") for name in names):
        raise Unusable(PDF_ONLY, unpacked.skipped)
    bundle = _Bundle(unpacked.files, unpacked.skipped)
    tex = bundle.tex_files(is_single=len(names) == 1)
    order = bundle.order(bundle.main(tex))
    if unused := set(tex) - set(order):
        bundle.skipped["never input"] += len(unused)
        lost, kept = (sum(len(bundle.text(name)) for name in names) for names in (unused, order))
        bundle.skipped.update(["more than half of the TeX of a paper"] * (lost > kept))
    text, repaired = "\n".join(map(bundle.text, order)), not bundle.repaired.isdisjoint(order)
    link = f"https://arxiv.org/abs/{paper}" if arxiv_id(paper) else ""
    return Content(record.title, text, link, record.year, dict(bundle.skipped), repaired)


def _bundles(root: Path, left_out: Counter[str]) -> Iterator[_Found]:
    """Yields the archives, PDFs and folders that are papers, also those in tar files of papers."""
    folders = [""]
    while folders:
        folder = folders.pop()
        files, subfolders = children(root / folder, left_out)
        for file in files:
            if _is_bundle(folder + file):
                yield from _papers_of(root, folder + file, left_out)
            else:
                left_out["not a source bundle"] += 1
        papers = {name for name in subfolders if _is_paper(root, folder + name)}
        for name in subfolders:
            if name in papers:
                yield _Found(folder + name, root / folder / name)
        folders += [f"{folder}{name}/" for name in reversed(subfolders) if name not in papers]


def _papers_of(root: Path, name: str, left_out: Counter[str]) -> Iterator[_Found]:
    """Yields the paper that a file is, or the papers in it if it is a tar file of papers."""
    parts: dict[str, Part] = {}
    skipped: Counter[str] = Counter()
    damage = None
    if name.endswith(".tar") and not arxiv_id(name.removesuffix(".tar")):
        try:
            for part in tar_parts(root / name, skipped):
                parts.pop(part.name, None)  # a later one of this name takes the later place
                parts[part.name] = part
        except DataError as error:
            damage = error
    papers = list(filter(_is_bundle, parts))
    if not papers or any(map(_is_tex, parts)):
        yield _Found(name, root / name, damage)
        return
    left_out.update(skipped)
    left_out.update(["not a source bundle"] * (len(parts) - len(papers)))
    for paper in papers:
        yield _Found(posixpath.join(posixpath.dirname(name), paper), parts[paper])
    if damage:
        yield _Found(name, root / name, damage)


def _is_pdf(name: str) -> bool:
    return name.endswith(".pdf")


def _is_bundle(name: str) -> bool:
    if _is_pdf(name):
        return arxiv_id(name.removesuffix(".pdf")) is not None
    match = _EXTENSION.search(name)
    return match is not None and _FIGURE.search(name[: match.start()]) is None


def _is_paper(root: Path, folder: str) -> bool:
    if arxiv_id(folder) or any(map(_is_tex, children(root / folder, Counter())[0])):
        return True
    if "/" in folder:
        return False
    below = [f"{folder}/{file}" for file in files_below(root / folder, Counter())]
    parents = {str(parent) for file in below for parent in PurePosixPath(file).parents}
    return not any(map(_is_bundle, below)) and not any(map(arxiv_id, parents))


def arxiv_id(path: str) -> str | None:
    """Returns the arXiv id, without version, that a path without extensions ends in, or None."""
    if match := _NEW_ID.fullmatch(path):
        return match[1]
    return "/".join(match.groups()) if (match := _OLD_ID.fullmatch(path)) else None


def _is_tex(name: str) -> bool:
    return name.lower().endswith((".tex", ".ltx", ".latex"))


class _Bundle:
    """The files of one paper; each is decoded and searched for inputs once, when needed.

    `skipped` also counts the files without text, and `repaired` names those that are not UTF-8.
    """

    def __init__(self, files: Mapping[str, bytes], skipped: Mapping[str, int]):
        self._files = files
        self._texts: dict[str, str] = {}
        self.skipped = Counter(skipped)
        self.repaired: set[str] = set()

    def tex_files(self, *, is_single: bool) -> list[str]:
        """Returns the names of the TeX files; `is_single` says that the paper has one file."""
        tex = [
            name
            for name in self._files
            if (_is_tex(name) and self.text(name))
            or ("." not in posixpath.basename(name) and _CLASS.search(self.text(name)))
        ]
        if is_single and not tex:
            texts = {name: self.text(name) for name in self._files}
            tex = [name for name, text in texts.items() if _TEX_COMMAND.search(text)]
            tex = [name for name in tex if not _OTHER_LANGUAGE.match(texts[name])]
        if not tex:
            raise Unusable("no TeX file", self.skipped)
        if not any(_CONTROL_WORD.search(self.text(name)) for name in tex):
            raise Unusable("no LaTeX", self.skipped)
        return tex

    def text(self, name: str) -> str:
        """Returns the text of a file, "" if it is binary or empty, which is counted once."""
        if name not in self._texts:
            data = self._files[name]
            text, repaired = _decode(data)
            if repaired:
                self.repaired.add(name)
            reason = "binary" if b"\0" in data else "" if data.strip() else "empty"
            self.skipped.update([reason] if reason else [])
            self._texts[name] = "" if reason else text
        return self._texts[name]

    def main(self, names: Iterable[str]) -> str:
        """Returns the main file among these, by the rule of this module."""

        def rank(name: str) -> tuple[int, int]:
            code = _COMMENT.sub(r"\1", self.text(name))
            return 2 * (not _BEGIN.search(code)) + (not _CLASS.search(code)), name.count("/")

        def longest(name: str) -> tuple[int, bytes]:
            read = {name, *self._inputs(name, posixpath.dirname(name))}
            return -sum(len(self.text(each)) for each in read), os.fsencode(name)

        ranks = {name: rank(name) for name in names}
        first = min(ranks.values())
        return min((name for name in ranks if ranks[name] == first), key=longest)

    def order(self, main: str) -> list[str]:
        """Returns a file and all that it inputs, depth first, each once."""
        found: dict[str, None] = {}
        pending = [main]
        listed = _INCLUDE_ONLY.search(_COMMENT.sub(r"\1", self.text(main)))
        only = listed and {name.strip(_BLANK) for name in listed[1].split(",")}
        while pending:
            name = pending.pop()
            if name not in found:
                found[name] = None
                pending += reversed(list(self._inputs(name, posixpath.dirname(main), only)))
        return list(found)

    def _inputs(self, name: str, folder: str, only: Collection[str] | None = None) -> Iterator[str]:
        """Yields the files that a file inputs, with those of `folder` before others.

        Of the files that are included, only those in `only`, if that is given.
        """
        targets: dict[str, None] = {}
        for match in _INPUT.finditer(_COMMENT.sub(r"\1", self.text(name))):
            command, *parts = [group for group in match.groups() if group is not None]
            target = posixpath.join(*(part.strip(_BLANK) for part in parts))
            if command != "include" or only is None or target in only:
                targets[target] = None
        folders = [folder, "", posixpath.dirname(name)]
        for target in filter(None, targets):
            paths = (
                posixpath.normpath(posixpath.join(folder, file))
                for folder in folders
                for file in (f"{target}.tex", target)
            )
            path = next((path for path in paths if path in self._files), None)
            if path is not None and self.text(path):
                yield path


def _read_metadata(file: Path, wanted: Collection[str]) -> dict[str, _Metadata]:
    """Returns the metadata of the wanted papers, from a file with a record for each paper."""
    records: dict[str, _Metadata] = {}
    for number, line in json_lines(file):
        where = f"{file}, line {number}"
        values = parse_record(line, where)
        paper = _string(values, "id", where)
        if paper in records:
            raise DataError(f"{where}: a second record for the id {paper!r}; keep one.")
        if paper in wanted:
            title, categories, date = (
                _string({key: values.get(key) or ""}, key, where)
                for key in ("title", "categories", "update_date")
            )
            year = re.fullmatch(r"(\d{4})-\d\d-\d\d", date)
            if date and not year:
                raise DataError(f"{where}: 'update_date' is {date!r:.60}; write it as 2007-05-23.")
            title = " ".join(replace_lone_surrogates(title)[0].split())
            records[paper] = _Metadata(
                title, int(year[1]) if year else 0, tuple(categories.split())
            )
    return records


def _string(values: Mapping[str, object], key: str, where: str) -> str:
    if not isinstance(value := values.get(key), str):
        raise DataError(f"{where}: {key!r} is {value!r:.60}; write it as a string.")
    return value


def _decode(data: bytes) -> tuple[str, bool]:
    """Returns the text of a TeX file, and whether it is not UTF-8 but an older encoding."""
    data = data.removeprefix(codecs.BOM_UTF8)
    for encoding in ("utf-8", "cp1252"):  # the latter has letters for Latin-1's control characters
        with suppress(UnicodeDecodeError):
            return data.decode(encoding), encoding != "utf-8"
    return data.decode("latin-1"), True
