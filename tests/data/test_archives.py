"""Archives: what is in them comes out, and nothing of a hostile one does."""

import gzip
import io
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellbridge.data import archives
from cellbridge.data.archives import Limits, Member, publish, unpack
from cellbridge.errors import FetchError, ResourceError

LIMITS = Limits(ratio=200.0, total_bytes=1 << 30)
CONTENT = {"a.txt": b"one", "images/b.tif": bytes(range(256)) * 40, "images/deep/er/c.tif": b""}


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, content: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def one_member(kind: bytes, **attributes: object) -> Callable[[Path], Path]:
    """Return what writes a tar archive with one member of a kind."""

    def write(path: Path) -> Path:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("member")
            info.type = kind
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info)
        return path

    return write


def zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def into(tmp_path: Path) -> Path:
    folder = tmp_path / "inside" / "target"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_what_was_packed_comes_out(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "archive"
    archive = zipped(file, CONTENT) if kind == "zip" else tarred(file, CONTENT, kind)
    folder = into(tmp_path)
    members = unpack(archive, folder, limits=LIMITS, what="it")
    assert tree(folder) == CONTENT
    assert {name: member.size for name, member in members.items()} == {k: len(v) for k, v in CONTENT.items()}
    assert all(archives.holds(folder / name, member) for name, member in members.items())


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "//evil",
        "C:/evil",
        "c:evil",
        "..\\evil",
        "a\\..\\..\\evil",
        "\\\\?\\C:\\evil",
        "a/..",
        "a\nb",
        "evil\u202etxt.exe",
        "x" * 256,
        ".",
        "./",
    ],
)
def test_a_name_that_leaves_the_target_is_refused_with_the_whole_archive(
    tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path], name: str
) -> None:
    archive = pack(tmp_path / "archive", {"good.txt": b"good", name: b"evil"})
    folder = into(tmp_path)
    if name == "./" and pack is zipped:  # a zip's folder entry: nothing to write
        assert set(unpack(archive, folder, limits=LIMITS, what="it")) == {"good.txt"}
        return
    with pytest.raises(FetchError, match=r"it: member .* only plain files"):
        unpack(archive, folder, limits=LIMITS, what="it")
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"archive", "good.txt"}


@pytest.mark.parametrize(
    "write",
    [
        one_member(tarfile.SYMTYPE, linkname="/etc/passwd"),
        one_member(tarfile.LNKTYPE, linkname="../../etc/passwd"),
        one_member(tarfile.CHRTYPE, devmajor=1, devminor=3),
        one_member(tarfile.BLKTYPE, devmajor=8),
        one_member(tarfile.FIFOTYPE),
        zip_link,
    ],
    ids=["symbolic link", "hard link", "character device", "block device", "pipe", "link in a zip"],
)
def test_links_and_devices_are_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    folder = into(tmp_path)
    with pytest.raises(FetchError, match="link"):
        unpack(write(tmp_path / "archive"), folder, limits=LIMITS, what="it")
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize("names", [("a/B.tif", "A/b.tif"), ("e\u0301", "\u00e9"), ("x", "x/y"), ("x/y", "x")])
def test_two_members_for_one_place_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    archive = zipped(tmp_path / "archive", dict.fromkeys(names, b"1"))
    with pytest.raises(FetchError, match="takes the place of another member"):
        unpack(archive, into(tmp_path), limits=LIMITS, what="it")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_stops_at_the_ratio(tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path]) -> None:
    archive = pack(tmp_path / "archive", {"zeros": bytes(24 << 20)})
    folder = into(tmp_path)
    with pytest.raises(FetchError, match=r"it may be a bomb.*max_unpacked_ratio"):
        unpack(archive, folder, limits=LIMITS, what="it")
    assert sum(len(data) for data in tree(folder).values()) <= 16 << 20


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_many_small_members_stop_at_the_total(tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path]) -> None:
    archive = pack(tmp_path / "archive", {f"{n}": bytes(1000) for n in range(50)})
    with pytest.raises(FetchError, match="at most 30000 are allowed"):
        unpack(archive, into(tmp_path), limits=Limits(ratio=1e9, total_bytes=30_000), what="it")


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    archive = tmp_path / "archive"
    archive.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)))
    with pytest.raises(FetchError, match=r"header of \d+ bytes"):
        unpack(archive, into(tmp_path), limits=LIMITS, what="it")


def test_a_zip_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "archive", {"a": bytes(range(256)) * 100})
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the central directory's uncompressed size
    assert struct.unpack_from("<I", data, at) == (25600,)
    struct.pack_into("<I", data, at, 10)
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(archive, into(tmp_path), limits=LIMITS, what="it")


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz", "text"])
def test_a_cut_archive_and_what_is_none_are_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "archive"
    content = {"a": bytes(range(256)) * 400}
    if kind == "text":
        file.write_text("<html>404</html>" * 100)
    else:
        zipped(file, content) if kind == "zip" else tarred(file, content, kind)
        file.write_bytes(file.read_bytes()[:-600] if kind == "zip" else file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(file, into(tmp_path), limits=LIMITS, what="it")


def test_a_tar_that_ends_between_two_members_or_has_a_damaged_header_is_refused(tmp_path: Path) -> None:
    whole = tarred(tmp_path / "archive", dict.fromkeys("abc", b"x"), "w").read_bytes()
    for damaged in (whole[:1024], whole[:1024] + b"\1" + whole[1025:], bytes(10240)):
        file = tmp_path / "damaged"
        file.write_bytes(damaged)
        folder = tmp_path / "target"
        folder.mkdir()
        with pytest.raises(FetchError, match="cannot be unpacked"):
            unpack(file, folder, limits=LIMITS, what="it")
        shutil.rmtree(folder)


def test_an_archive_of_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"cannot be unpacked \(holds no file\)"):
        unpack(zipped(tmp_path / "archive", {}), into(tmp_path), limits=LIMITS, what="it")


def test_a_flipped_byte_of_a_gzip_is_found_by_its_own_checksum(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "archive", {"a": b"x"})
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1  # in the checksum behind the compressed bytes
    archive.write_bytes(data)
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(archive, into(tmp_path), limits=LIMITS, what="it")


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: free)
    folder = into(tmp_path)
    with pytest.raises(ResourceError, match="10 are free"):
        unpack(zipped(tmp_path / "archive", {"a": bytes(100)}), folder, limits=LIMITS, what="it")
    assert list(folder.iterdir()) == []


def unpacked(tmp_path: Path, content: dict[str, bytes]) -> tuple[Path, dict[str, Member]]:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder, unpack(zipped(tmp_path / "archive", content), folder, limits=LIMITS, what="it")


def test_a_file_of_other_content_in_the_target_is_kept_and_nothing_is_moved(tmp_path: Path) -> None:
    folder, members = unpacked(tmp_path, {"new": b"new", "mine": b"theirs"})
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_bytes(b"mine")
    with pytest.raises(FetchError, match=r"1 of 2 files exist already with other content: .*mine"):
        publish(folder, target, members, known=set(), what="it")
    assert tree(target) == {"mine": b"mine"}
    publish(folder, target, members, known={"mine"}, what="it")
    assert tree(target) == {"new": b"new", "mine": b"theirs"}


def test_a_link_in_the_target_is_not_followed_out_of_it(tmp_path: Path) -> None:
    folder, members = unpacked(tmp_path, {"images/a": b"1"})
    (tmp_path / "outside").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / "images").symlink_to(tmp_path / "outside")
    with pytest.raises(FetchError, match="would leave"):
        publish(folder, target, members, known=set(), what="it")
    assert tree(tmp_path / "outside") == {}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.sampled_from("a./\\:~ .C\u00e9\x00\n-"), min_size=1, max_size=12))
def test_any_name_is_refused_or_stays_inside(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    around = tmp_path_factory.mktemp("around")
    folder = into(around)
    archive = tarred(around / "archive", {name: b"x"}, "w")
    try:
        members = unpack(archive, folder, limits=LIMITS, what="it")
    except FetchError:
        members = {}
    inside = {p for p in folder.rglob("*") if p.is_file()}
    assert {p for p in around.rglob("*") if p.is_file()} - inside == {archive}
    assert {folder / path for path in members} == inside
