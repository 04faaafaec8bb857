"""Laws of reading untrusted archives: nothing outside, nothing followed, nothing unbounded."""

import gzip
import io
import os
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from block_recurrent.data.documents import DataError
from block_recurrent.lab.corpora import archives
from block_recurrent.lab.corpora.archives import files_below, read_archive, safe_name, tar_parts
from block_recurrent.lab.corpora.entries import Unusable

UNSAFE = ["/etc/x", "../x", "a/../x", "a/../../x", "C:/x", "c:x", "a\\x", "..\\x", "..", "//x"]


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = ""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def tar(members, *, compressed: bool = False, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return gzip.compress(buffer.getvalue()) if compressed else buffer.getvalue()


def bundle(path: Path, members, **options) -> Path:
    path.write_bytes(tar(members, **options))
    return path


@pytest.fixture(params=["tar", "tar.gz", "folder"])
def archive(request, tmp_path):
    """Puts regular files into an archive of each kind."""

    def build(files: dict[str, bytes]) -> Path:
        if request.param != "folder":
            members = [member(*item) for item in files.items()]
            path = tmp_path / f"a.{request.param}"
            return bundle(path, members, compressed=request.param == "tar.gz")
        for name, data in files.items():
            (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "a" / name).write_bytes(data)
        return tmp_path / "a"

    return build


def test_every_kind_holds_the_same_files(archive):
    files = {"a.tex": b"A\r\n", "b/é.tex": b"\xff", "b/c/" + "x" * 150: b"long" * 1000, "d": b""}
    unpacked = read_archive(archive(files))
    assert unpacked == (files, (), {})


def test_only_wanted_files_are_read(archive, monkeypatch):
    path = archive({"a.tex": b"A", "b.png": b"P" * 100})
    monkeypatch.setattr(archives, "MEMBER_BYTES", 50)
    unpacked = read_archive(path, wanted=lambda name: name.endswith(".tex"))
    assert unpacked == ({"a.tex": b"A"}, ("b.png",), {})


@pytest.mark.parametrize("bound", ["MEMBER_BYTES", "TOTAL_BYTES", "MEMBERS"])
def test_a_bound_that_is_passed_makes_an_archive_unusable(archive, monkeypatch, bound):
    path = archive({f"{n}": b"x" * 20_000 for n in range(3)})
    exact = {"MEMBER_BYTES": 20_000, "TOTAL_BYTES": 60_000, "MEMBERS": 3}[bound]
    if bound == "TOTAL_BYTES" and not path.is_dir():
        data = path.read_bytes()
        exact = len(gzip.decompress(data) if path.suffix == ".gz" else data)
    monkeypatch.setattr(archives, bound, exact)
    read_archive(path)
    monkeypatch.setattr(archives, bound, exact - 1)
    with pytest.raises(Unusable, match=r"^archive too large$"):
        read_archive(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", UNSAFE)
def test_members_outside_the_root_are_skipped_and_counted(tmp_path, name, compressed):
    members = [member("in.tex", b"in"), member(name, b"out"), member("z.tex", b"z")]
    path = bundle(tmp_path / "a.tar", members, compressed=compressed)
    assert read_archive(path) == ({"in.tex": b"in", "z.tex": b"z"}, (), {"unsafe name": 1})


def test_links_devices_and_pipes_are_never_followed(tmp_path):
    members = [
        member("real.tex", b"real"),
        member("soft.tex", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("hard.tex", kind=tarfile.LNKTYPE, target="real.tex"),
        member("up.tex", kind=tarfile.LNKTYPE, target="../../etc/passwd"),
        member("zero.tex", kind=tarfile.CHRTYPE),
        member("disk.tex", kind=tarfile.BLKTYPE),
        member("pipe.tex", kind=tarfile.FIFOTYPE),
        member("folder", kind=tarfile.DIRTYPE),
    ]
    unpacked = read_archive(bundle(tmp_path / "a.tar", members))
    assert unpacked == ({"real.tex": b"real"}, (), {"link": 3, "not a file": 3})


def test_a_sparse_member_is_not_a_file(tmp_path):
    info, data = member("huge.tex", kind=tarfile.GNUTYPE_SPARSE)
    path = bundle(tmp_path / "a.tar", [(info, data)], form=tarfile.GNU_FORMAT)
    assert read_archive(path) == ({}, (), {"not a file": 1})


def test_links_and_pipes_in_folders_are_never_followed(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret.tex").write_text("secret")
    (root / "a.tex").write_text("a")
    (root / "file.tex").symlink_to(outside / "secret.tex")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to("nothing")
    os.mkfifo(root / "pipe.tex")
    (root / "back\\slash").write_text("x")
    skipped = {"link": 4, "not a file": 1, "unsafe name": 1}
    assert read_archive(root) == ({"a.tex": b"a"}, (), skipped)


def test_the_last_of_several_files_with_one_name_counts(tmp_path):
    names = ["a.tex", "b.tex", "./a.tex", "x//b.tex", "x/./b.tex"]
    path = bundle(tmp_path / "a.tar", [member(name, name.encode()) for name in names])
    files = {"b.tex": b"b.tex", "a.tex": b"./a.tex", "x/b.tex": b"x/./b.tex"}
    assert list(read_archive(path).files.items()) == list(files.items())


def test_content_decides_not_the_name(tmp_path):
    inside = tar([member("a.tex", b"A")])
    single = gzip.compress(b"\\bye")
    for name, data in {"x.gz": gzip.compress(inside), "y.gz": inside}.items():
        (tmp_path / name).write_bytes(data)
        assert read_archive(tmp_path / name).files == {"a.tex": b"A"}
    for name, inner in {"0704.0001.gz": "0704.0001", "b.tex.gz": "b.tex", "c.tar.gz": "c"}.items():
        (tmp_path / name).write_bytes(single)
        assert read_archive(tmp_path / name).files == {inner: b"\\bye"}


def test_an_archive_without_a_magic_word_is_a_tar_file(tmp_path):
    block = bytearray(tar([member("a.tex", b"A")], form=tarfile.USTAR_FORMAT))
    block[257:265] = bytes(8)
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    block[148:156] = b"%06o\0 " % total
    (tmp_path / "old.gz").write_bytes(gzip.compress(bytes(block)))
    assert read_archive(tmp_path / "old.gz").files == {"a.tex": b"A"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_pdf_is_not_usable(tmp_path, compress):
    (tmp_path / "a.gz").write_bytes(compress(b"%PDF-1.4 ..."))
    with pytest.raises(Unusable, match=r"^PDF only$"):
        read_archive(tmp_path / "a.gz")


def test_an_empty_archive_holds_nothing(tmp_path):
    assert read_archive(bundle(tmp_path / "a.tar", [])) == ({}, (), {})


@pytest.mark.parametrize("data", [b"", b"\x1f", b"neither", b"PK\x03\x04" * 200, b"\xff" * 600])
def test_anything_else_is_an_error_that_names_the_file(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar is neither a gzip nor a tar file; .*\.$"):
        read_archive(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["tar of tar.gz", "single"])
def test_a_compressed_file_truncated_anywhere_is_an_error(tmp_path, kind):
    text = os.urandom(700)
    members = [member("a.tex", text), member("b.tex", text[::-1])]
    data = gzip.compress(text) if kind == "single" else tar(members, compressed=True)
    path = tmp_path / "a.gz"
    for length in range(2, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"a\.gz.* cannot be read: .+\.$"):
            read_archive(path)


def test_a_tar_file_truncated_before_its_end_mark_is_an_error(tmp_path):
    members = [member("a.tex", b"a" * 700), member("b.tex", b"b" * 512)]
    data = tar(members, form=tarfile.USTAR_FORMAT)
    end = 512 + 1024 + 512 + 512
    path = tmp_path / "a.tar"
    for length in range(262, end + 511, 50):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"a\.tar"):
            read_archive(path)
    path.write_bytes(data[: end + 512])
    assert read_archive(path).files == {"a.tex": b"a" * 700, "b.tex": b"b" * 512}


def test_the_damaged_member_is_named(tmp_path):
    data = tar([member("a.tex", b"a"), member("deep/b.tex", b"b" * 5000)])
    (tmp_path / "a.tar").write_bytes(data[:3000])
    with pytest.raises(DataError, match=r"a\.tar, member 'deep/b\.tex' cannot be read: "):
        read_archive(tmp_path / "a.tar")


def test_a_flipped_byte_of_a_compressed_archive_never_changes_a_file(tmp_path):
    files = {"a.tex": os.urandom(300), "b.tex": os.urandom(300)}
    good = tar([member(*item) for item in files.items()], compressed=True)
    errors = 0
    for position in range(10, len(good), 5):
        data = bytearray(good)
        data[position] ^= 0x10
        (tmp_path / "a.gz").write_bytes(data)
        try:  # a few bits, such as those that fill the last byte up, mean nothing
            assert read_archive(tmp_path / "a.gz").files == files
        except DataError as error:
            errors += "a.gz" in str(error)
    assert errors > 0.8 * len(range(10, len(good), 5))


def test_a_flipped_byte_of_a_header_ends_in_an_error(tmp_path):
    good = tar([member("a.tex", b"a"), member("b.tex", b"b")], form=tarfile.USTAR_FORMAT)
    for position in [*range(0, 500, 9), *range(1024, 1524, 9)]:
        data = bytearray(good)
        data[position] ^= 0x01
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.tar (cannot be read|is neither)"):
            read_archive(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [-1, -512, -1024])
def test_a_negative_size_is_an_error(tmp_path, size):
    good = bytearray(tar([member("a.tex", b"a"), member("b.tex", b"b")], form=tarfile.USTAR_FORMAT))
    good[1024 + 124 : 1024 + 136] = size.to_bytes(12, "big", signed=True)
    good[1024 + 148 : 1024 + 156] = b" " * 8
    good[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(good[1024:1536])
    (tmp_path / "a.tar").write_bytes(good)
    with pytest.raises(DataError, match=r"a\.tar cannot be read"):
        read_archive(tmp_path / "a.tar")


def test_a_chain_of_long_names_is_an_error(tmp_path):
    info, data = member("././@LongLink", b"x" * 10, tarfile.GNUTYPE_LONGNAME)
    path = bundle(tmp_path / "a.gz", [(info, data)] * 3000, compressed=True)
    with pytest.raises(DataError, match=r"a\.gz cannot be read"):
        read_archive(path)


def _bomb(path: Path, head: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(64):
            file.write(bytes(2**20))
    return path


def _header(size: int, kind: bytes) -> bytes:
    info = tarfile.TarInfo("a.tex")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "head",
    [
        b"\\single",
        _header(2**26, tarfile.REGTYPE),
        _header(2**40, tarfile.REGTYPE),
        _header(2**26, tarfile.XHDTYPE),
        _header(2**26, tarfile.GNUTYPE_LONGNAME),
        _header(2**26, tarfile.FIFOTYPE),
        _header(0, tarfile.REGTYPE),
    ],
    ids=["single", "member", "tera", "pax", "longname", "skipped", "tail"],
)
def test_a_bomb_is_refused_within_the_bound(tmp_path, monkeypatch, head):
    path = _bomb(tmp_path / "a.gz", head)
    bound = 2**22
    monkeypatch.setattr(archives, "MEMBER_BYTES", bound)
    monkeypatch.setattr(archives, "TOTAL_BYTES", bound)
    tracemalloc.start()
    with pytest.raises(Unusable, match=r"^archive too large$"):
        read_archive(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * bound


def test_the_parts_of_a_tar_file_are_its_safe_files_read_by_their_offsets(tmp_path):
    inner = tar([member("a.tex", b"A")], compressed=True)
    members = [
        member("./b/a.gz", inner),
        member("../out.gz", inner),
        member("soft.gz", kind=tarfile.SYMTYPE, target="/etc/passwd"),
        member("folder", kind=tarfile.DIRTYPE),
        member("cut.gz", inner[:-9]),
    ]
    skipped: Counter[str] = Counter()
    good, cut = tar_parts(bundle(tmp_path / "all.tar", members), skipped)
    assert (good.name, cut.name) == ("b/a.gz", "cut.gz")
    assert skipped == {"unsafe name": 1, "link": 1}
    assert read_archive(good).files == {"a.tex": b"A"}
    with pytest.raises(DataError, match=r"all\.tar, member 'cut\.gz' cannot be read: "):
        read_archive(cut)
    assert not list(tar_parts(bundle(tmp_path / "a.gz", members, compressed=True), skipped))


def test_a_header_without_bound_is_damage_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBER_BYTES", 2**20)
    path = tmp_path / "all.tar"
    path.write_bytes(_header(2**40, tarfile.GNUTYPE_LONGNAME))
    os.truncate(path, 2**27)
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"all\.tar cannot be read: a header of 1099511627776 bytes"
    ):
        list(tar_parts(path, Counter()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_safe_name_stays_as_it_is():
    assert safe_name("a/b.c") == safe_name("./a//b.c/") == "a/b.c"
    assert [safe_name(name) for name in [*UNSAFE, "", ".", "./"]] == [None] * (len(UNSAFE) + 3)


def test_files_come_before_subfolders_both_sorted_by_bytes(tmp_path):
    names = ["B", "a", "é", "0/z", "0/0/z", "a.b/x", "c/x", "a-/x"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = ["B", "a", "é", "0/z", "0/0/z", "a-/x", "a.b/x", "c/x"]
    assert list(files_below(tmp_path, Counter())) == expected
