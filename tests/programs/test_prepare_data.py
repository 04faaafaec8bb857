"""Laws of the program that prepares corpora, as it is called from a shell."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from block_recurrent.data import DataError
from block_recurrent.data.tfds_reader import TfdsDirectory
from block_recurrent.lab.corpora import prepare_data as program
from experiments import prepare_data

ROOT = Path(prepare_data.__file__).parents[1]


def texts(path: Path) -> dict[str, str]:
    directory = TfdsDirectory(path)
    return {d.id: d.text for split in directory.splits for d in directory.documents(split)}


def jsonl(path: Path, count: int = 20) -> Path:
    lines = (json.dumps({"id": f"d{n}", "text": f"text {n} " * 50}) + "\n" for n in range(count))
    path.write_text("".join(lines), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    return prepare_data.main([str(argument) for argument in arguments])


def test_text_becomes_a_corpus_with_a_summary(tmp_path, capsys):
    data, output = jsonl(tmp_path / "d.jsonl"), tmp_path / "out"
    assert run("text", data, f"--output={output}", "--validation_percent=30", "--name=mine") == 0
    said = capsys.readouterr().out
    assert len(texts(output)) == 20 and TfdsDirectory(output).name == "mine"
    assert f"written to {output}" in said and f"--gin.data.path={output}" in said
    counts = [line.split()[1] for line in said.splitlines()[1:4]]
    assert sum(map(int, counts)) == 20


def test_the_columns_can_be_named(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"n": "a", "body": "x"}\n', encoding="utf-8")
    names = ("--id_column=n", "--text_column=body")
    assert run("text", tmp_path / "d.jsonl", f"--output={tmp_path / 'out'}", *names) == 0
    assert texts(tmp_path / "out") == {"a": "x"}


def test_papers_become_a_corpus(tmp_path):
    paper = b"\\documentclass{article}\n\\begin{document}\nProof.\n\\end{document}\n"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "0704.0001.gz").write_bytes(gzip.compress(paper))
    with tarfile.open(tmp_path / "raw" / "0704.0002.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("main.tex")
        member.size = len(paper)
        archive.addfile(member, io.BytesIO(paper))
    records = [
        {"id": "0704.0001", "title": "T", "categories": "math.GT", "update_date": "2007-01-01"},
        {"id": "0704.0002", "title": "U", "categories": "cs.LG", "update_date": "2007-01-01"},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    options = (f"--metadata={tmp_path / 'metadata.jsonl'}", "--categories=math.,physics")
    assert run("latex", tmp_path / "raw", f"--output={tmp_path / 'out'}", *options) == 0
    assert list(texts(tmp_path / "out")) == ["0704.0001"]
    assert TfdsDirectory(tmp_path / "out").name == "arxiv"


def test_papers_without_latex_are_left_out_and_a_folder_of_nothing_else_is_refused(
    tmp_path, capsys
):
    files = {"notes/a.tex": "What was said.", "code/main.py": 'print("a\\n")', "mail/1.txt": "Hi."}
    for name, content in files.items():
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        (tmp_path / "raw" / name).write_text(content, encoding="utf-8")
    output = tmp_path / "out"
    assert run("latex", tmp_path / "raw", f"--output={output}") == 3
    said = capsys.readouterr().err
    assert "error: source 'arxiv' gives no usable document" in said
    assert "'no LaTeX': 1" in said and "'no TeX file': 2" in said
    assert said.endswith("folders with TeX files in them.\n") and "papers in LaTeX" in said
    assert not list(tmp_path.glob("out*"))
    (tmp_path / "raw" / "paper").mkdir()
    (tmp_path / "raw" / "paper" / "a.tex").write_text("\\section{One}", encoding="utf-8")
    assert run("latex", tmp_path / "raw", f"--output={output}") == 0
    assert texts(output) == {"paper": "\\section{One}"}
    assert "dropped documents: 1 no LaTeX; 2 no TeX file\n" in capsys.readouterr().out


def test_source_code_becomes_a_corpus(tmp_path):
    for name, content in {"a/x.py": "x", "a/y.go": "y"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    output = tmp_path / "out"
    assert run("git", tmp_path / "a", f"--output={output}", "--extensions=.py,.c") == 0
    assert texts(output) == {"a": "x"}


def test_a_part_of_pg19_must_be_called_one(tmp_path, capsys):
    (tmp_path / "raw" / "train").mkdir(parents=True)
    (tmp_path / "raw" / "train" / "7.txt").write_text("seven", encoding="utf-8")
    (tmp_path / "raw" / "metadata.csv").write_text("7,T,1900,u\n", encoding="utf-8")
    arguments = ("pg19", tmp_path / "raw", f"--output={tmp_path / 'out'}")
    assert run(*arguments) == 3
    assert "train has 1 books, not 28,602" in capsys.readouterr().err
    assert run(*arguments, "--partial") == 0
    assert texts(tmp_path / "out") == {"7": "seven"}
    assert "WARNING: no documents for validation and test" in capsys.readouterr().out


def test_pg19_is_downloaded_first_if_asked(tmp_path, monkeypatch, capsys):
    def download(path, *, report):
        (path / "train").mkdir(parents=True)
        (path / "train" / "7.txt").write_text("seven", encoding="utf-8")
        (path / "metadata.csv").write_text("7,T,1900,u\n", encoding="utf-8")
        report(2, 2)

    monkeypatch.setattr(program, "download", download)
    arguments = ("pg19", f"--download={tmp_path / 'raw'}", "--partial")
    assert run(*arguments, f"--output={tmp_path / 'out'}") == 0
    assert texts(tmp_path / "out") == {"7": "seven"}
    assert "downloading: 2 of 2 files" in capsys.readouterr().err


def test_a_signal_stops_a_download(tmp_path, monkeypatch, capsys):
    def download(path, *, report):
        os.kill(os.getpid(), signal.SIGINT)
        report(1, 2)

    monkeypatch.setattr(program, "download", download)
    assert run("pg19", f"--download={tmp_path / 'raw'}", f"--output={tmp_path / 'out'}") == 130
    assert "stopped by SIGINT; the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: KIND"),
        (("pdf",), "invalid choice: 'pdf'"),
        (("text", "x"), "required: --output"),
        (("pg19", "--output=o"), "one of the arguments PATH --download is required"),
        (("pg19", "x", "--download=y", "--output=o"), "not allowed with argument"),
        (("text", "x", "--output=o", "--limit=0"), "limit = 0 must be at least 1"),
        (("text", "x", "--output=o", "--limit=many"), "invalid int value: 'many'"),
        (("text", "x", "--output=o", "--test_percent=101"), "test_percent = 101 must be"),
        (("text", "x", "--output=o", "--name=A-B"), "name = 'A-B' must be of small letters"),
        (
            ("text", "x", "--output=o", "--over"),
            "unknown argument '--over' (did you mean '--overwrite'?)",
        ),
    ],
)
def test_wrong_usage_is_status_2_and_a_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_data_that_cannot_be_used_is_status_3_and_a_sentence(tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "text": "x"}\nno json\n', encoding="utf-8")
    for path, message in [(bad, "bad.jsonl, line 2: not JSON"), (tmp_path / "none", "not exist")]:
        assert run("text", path, f"--output={tmp_path / 'out'}") == 3
        last = capsys.readouterr().err.splitlines()[-1]
        assert ": error: " in last and message in last
    assert run("text", bad, f"--output={tmp_path}") == 3
    assert "exists and is no corpus" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def _damaged_git(raw: Path) -> None:
    for name, objects in (("bad", "sha256"), ("good", "sha1")):
        (raw / name).mkdir()
        (raw / name / "a.py").write_text(name)
        user = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        for command in (["init", f"--object-format={objects}"], ["add", "-A"], ["commit", "-mx"]):
            subprocess.run(
                ["git", *user, *command], cwd=raw / name, check=True, capture_output=True
            )
    (raw / "linked").mkdir()
    (raw / "linked" / ".git").write_text("gitdir: elsewhere")


def _damaged_text(raw: Path) -> None:
    jsonl(raw / "good.jsonl", 3)
    (raw / "bad.jsonl").write_text('{"id": "first", "text": "x"}\n{"id": "second", "te')
    (raw / "bad.txt").write_text("UTF-16 without a mark", encoding="utf-16-le")


def _damaged_latex(raw: Path) -> None:
    paper = gzip.compress(b"\\section{One}")
    (raw / "bad.gz").write_bytes(paper[:-9])
    with tarfile.open(raw / "bad.tar", "w") as archive:
        for name in ("0704.0001.gz", "0704.0002.gz"):
            member = tarfile.TarInfo(name)
            member.size = len(paper)
            archive.addfile(member, io.BytesIO(paper))
    os.truncate(raw / "bad.tar", 1124)


@pytest.mark.parametrize(
    ("kind", "make", "kept"),
    [
        ("git", _damaged_git, {"good"}),
        ("text", _damaged_text, {"d0", "d1", "d2", "first"}),
        ("latex", _damaged_latex, {"0704.0001"}),
    ],
)
def test_what_is_damaged_is_an_error_that_names_it_or_left_out_if_asked(
    tmp_path, capsys, kind, make, kept
):
    (tmp_path / "raw").mkdir()
    make(tmp_path / "raw")
    arguments = (kind, tmp_path / "raw", f"--output={tmp_path / 'out'}")
    assert run(*arguments) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {tmp_path / 'raw'}/bad" in message and "--skip_damaged" in message
    assert run(*arguments, "--skip_damaged") == 0
    assert texts(tmp_path / "out").keys() == kept
    assert "dropped documents: 2 damaged\n" in capsys.readouterr().out


def test_an_existing_corpus_is_replaced_only_if_asked(tmp_path, capsys):
    first, second, output = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "out"))
    assert run("text", jsonl(first), f"--output={output}") == 0
    assert run("text", jsonl(second, 3), f"--output={output}") == 3
    assert "--overwrite to replace it" in capsys.readouterr().err
    assert len(texts(output)) == 20
    assert run("text", second, f"--output={output}", "--overwrite", "--limit=2") == 0
    assert len(texts(output)) == 2


def test_an_error_that_a_signal_caused_in_a_source_is_a_stop(tmp_path, monkeypatch):
    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise DataError("git was stopped")

    monkeypatch.setattr(program, "prepare", stopped)
    assert run("text", jsonl(tmp_path / "d.jsonl"), f"--output={tmp_path / 'out'}") == 143


SLOW = """
import sys, time
from pathlib import Path
from experiments import prepare_data
from block_recurrent.data import text_files

reads, folder = iter(range(1000)), Path({folder!r})

def slow(*arguments, read=text_files.decode_file):
    if next(reads) == 20:
        (folder / "reading").touch()
        while not (folder / "signalled").exists():
            time.sleep(0.01)
    return read(*arguments)

text_files.decode_file = slow
sys.exit(prepare_data.main({arguments!r}))
"""


def test_a_signal_stops_the_program_and_the_same_command_continues(tmp_path):
    (tmp_path / "raw").mkdir()
    for name in range(100):
        (tmp_path / "raw" / f"{name}.txt").write_text(f"text {name}", encoding="utf-8")
    output = tmp_path / "out"
    arguments = ["text", str(tmp_path / "raw"), f"--output={output}", "--test_percent=5"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(folder=str(tmp_path), arguments=arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "reading").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    (tmp_path / "signalled").touch()
    said = process.communicate()[1]
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped by SIGINT; the same command continues"
    assert not output.exists() and (tmp_path / "out.partial" / "test.json").exists()
    assert run(*arguments) == 0
    assert len(texts(output)) == 100
