"""Fetching from a server that cuts, lies, errs and dawdles: what becomes visible is whole and right, or nothing does."""

import asyncio
import errno
import hashlib
import json
import shutil
import signal
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from faulty_server import Fault, FaultyServer, faulty_server
from fsspec.asyn import get_loop
from small_set import fetch, noise, partials, visible, write_manifest

from cellbridge import cli
from cellbridge.data.fetch import http, plan, transfer
from cellbridge.data.fetch.crew import Stopped
from cellbridge.data.fetch.remotes import TryAgain, awaited, never_stopped
from cellbridge.errors import FetchError, ManifestError, ResourceError, RunError, StoppedBySignal

A = noise(300_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server() as plan:
        plan.files["a"] = A
        yield plan


def manifest_of(server: FaultyServer, tmp_path: Path, *files: dict[str, Any], **fetch_keys: Any) -> Path:
    listed = list(files) or [{"path": "a", "sha256": sha256(A)}]
    return write_manifest(tmp_path / "set", {"url": server.url, "files": listed, **fetch_keys})


def root_of(manifest: Path) -> Path:
    return manifest.parent / "data"


@pytest.mark.parametrize("sums", [{"sha256": sha256(A)}, {"md5": hashlib.md5(A).hexdigest().upper()}, {}])
def test_a_file_arrives_as_it_is(server: FaultyServer, tmp_path: Path, sums: dict[str, str]) -> None:
    manifest = manifest_of(server, tmp_path, {"path": "images/a.tif", "url": "a", "size_bytes": len(A), **sums})
    summary = fetch(manifest)
    assert visible(root_of(manifest)) == {"images/a.tif": A}
    assert (summary["fetched"], summary["bytes"], summary["without_checksum"]) == (1, len(A), not sums)
    assert partials(root_of(manifest)) == []


@pytest.mark.parametrize("fault", [Fault(cut_after=100_000), Fault(cut_after=1)])
def test_a_cut_connection_goes_on_from_where_it_was_cut(server: FaultyServer, tmp_path: Path, fault: Fault) -> None:
    server.faults["a"] = [fault, fault]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    assert server.gets("a") == [None, f"bytes={fault.cut_after}-", f"bytes={2 * (fault.cut_after or 0)}-"]


def test_cuts_that_each_bring_a_byte_more_are_borne_however_many(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(cut_after=20_000)] * 12
    manifest = manifest_of(server, tmp_path)
    fetch(manifest, attempts=2)
    assert visible(root_of(manifest)) == {"a": A}


def test_a_server_that_ignores_range_is_read_from_the_start_again(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(cut_after=100_000), Fault(ignores_range=True)]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    assert server.gets("a") == [None, "bytes=100000-"]


def test_a_server_that_always_cuts_and_ignores_range_is_given_up(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a"] = Fault(cut_after=100_000, ignores_range=True)
    manifest = manifest_of(server, tmp_path)
    with pytest.raises(FetchError, match=r"/a: .*3 attempts in a row, 100000 bytes are kept.*same command again"):
        fetch(manifest, attempts=3)
    assert len(server.gets("a")) == 3
    assert visible(root_of(manifest)) == {}


def test_a_range_that_begins_elsewhere_is_not_believed(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(cut_after=100_000), Fault(begins_at=0)]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    assert server.gets("a") == [None, "bytes=100000-", None]


def test_wrong_bytes_never_become_visible(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a"] = Fault(wrong=True)
    manifest = manifest_of(server, tmp_path)
    found = sha256(A[:-1] + bytes([A[-1] ^ 1]))
    with pytest.raises(
        FetchError, match=rf"{server.url}/a: its sha256 is {found}, expected {sha256(A)} \(by manifest.yaml"
    ):
        fetch(manifest)
    assert visible(root_of(manifest)) == {}
    assert partials(root_of(manifest)) == []
    assert len(server.gets("a")) == 2  # a whole file that is wrong twice is another file


def test_wrong_bytes_that_come_once_are_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(wrong=True)]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}


@pytest.mark.parametrize("sums", [{}, {"sha256": sha256(A)}])
@pytest.mark.parametrize(
    ("head", "get", "said"),
    [
        (Fault(), Fault(says=len(A) + 10), "says that it has 300000 bytes, and then 300010"),
        (Fault(), Fault(says=len(A) - 10), "says that it has 300000 bytes, and then 299990"),
        (Fault(says=len(A) + 10), Fault(), "says that it has 300010 bytes, and then 300000"),
        (Fault(says=len(A) + 10), Fault(says=len(A) + 10, ignores_range=True), "payload is not completed|ended after"),
        (Fault(says_no_length=True), Fault(chunked_cut_after=1000, ignores_range=True), "payload is not completed"),
    ],
    ids=["more than the head", "less than the head", "head says more", "both say more", "chunks end early"],
)
def test_a_length_that_is_a_lie_is_found(
    server: FaultyServer, tmp_path: Path, head: Fault, get: Fault, said: str, sums: dict[str, str]
) -> None:
    server.heads["a"], server.always["a"] = head, get
    manifest = manifest_of(server, tmp_path, {"path": "a", **sums})
    with pytest.raises(FetchError, match=rf"/a: .*({said})"):
        fetch(manifest, attempts=2)
    assert visible(root_of(manifest)) == {}


def test_both_saying_too_little_is_found_by_the_checksum_or_the_size(server: FaultyServer, tmp_path: Path) -> None:
    server.heads["a"] = server.always["a"] = Fault(says=1000)
    manifest = manifest_of(server, tmp_path)
    with pytest.raises(
        FetchError, match=r"/a: (its sha256 is|.*Bad status line)"
    ):  # the rest is taken for another answer
        fetch(manifest, attempts=2)
    manifest = manifest_of(server, tmp_path, {"path": "a", "size_bytes": len(A)})
    with pytest.raises(FetchError, match="has 1000 bytes, expected 300000"):
        fetch(manifest, attempts=2)
    assert visible(root_of(manifest)) == {}


def test_a_server_that_is_busy_is_asked_again(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(status=500), Fault(status=503, headers={"Retry-After": "0"}), Fault(status=429)]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    server.files["b"] = b"b"
    server.always["b"] = Fault(status=502)
    with pytest.raises(FetchError, match=r"/b: the server answers 502 Bad Gateway \(3 attempts"):
        fetch(manifest_of(server, tmp_path, {"path": "b"}), attempts=3)


@pytest.mark.parametrize(("status", "said"), [(404, "is not there"), (403, "may not be read"), (418, "expected 200")])
def test_what_will_not_pass_is_not_asked_for_again(
    server: FaultyServer, tmp_path: Path, status: int, said: str
) -> None:
    server.heads["a"] = server.always["a"] = Fault(status=status)
    with pytest.raises(FetchError, match=rf"{server.url}/a: .*{said}|{server.url}/a: {said}"):
        fetch(manifest_of(server, tmp_path))
    assert len(server.log) <= 2  # a HEAD, and where it is refused a GET
    assert not root_of(tmp_path / "set" / "manifest.yaml").exists()  # nothing is left of what never began


@pytest.mark.parametrize(
    ("url", "said"), [("http://127.0.0.1:80:81/a", "leads nowhere"), ("{server}/loop", r"redirected \d+ times")]
)
def test_a_url_that_leads_nowhere_says_so(server: FaultyServer, tmp_path: Path, url: str, said: str) -> None:
    server.heads["loop"] = Fault(status=302, headers={"Location": "/loop"})
    with pytest.raises(FetchError, match=rf"{said}.*Correct the URL in the manifest"):
        fetch(manifest_of(server, tmp_path, {"path": "a", "url": url.format(server=server.url)}))


def test_what_has_come_of_a_file_of_unknown_size_is_not_taken_off_the_others(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.files["b"] = b"bb"
    manifest = manifest_of(server, tmp_path, {"path": "a", "sha256": sha256(A)}, {"path": "b"})
    server.heads["a"] = Fault(says_no_length=True)
    server.always["a"] = Fault(chunked_cut_after=100_000)
    with pytest.raises(FetchError):
        fetch(manifest, attempts=1)
    (root_of(manifest) / "b").unlink()
    assert fetch(manifest, dry_run=True)["bytes_to_fetch"] == 2


def test_a_file_of_unknown_size_that_is_all_here_is_whole(server: FaultyServer, tmp_path: Path) -> None:
    server.heads["a"] = Fault(says_no_length=True)
    server.faults["a"] = [
        Fault(chunked_cut_after=100_000),
        Fault(chunked_cut_after=200_000),
    ]  # only the end mark is lost
    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    assert server.gets("a") == [None, "bytes=100000-", "bytes=300000-"]


def test_a_redirect_is_followed_but_not_out_of_encryption(server: FaultyServer, tmp_path: Path) -> None:
    there = Fault(status=302, headers={"Location": "/a"})
    server.files["moved"], server.heads["moved"], server.always["moved"] = b"", there, there
    manifest = manifest_of(server, tmp_path, {"path": "moved", "sha256": sha256(A)})
    fetch(manifest)
    assert visible(root_of(manifest)) == {"moved": A}
    answer: Any = SimpleNamespace(status=200, reason="OK", url=http._address("http://x/a"), headers={})
    with pytest.raises(FetchError, match=r"https://x/a: leads to http://x/a without encryption"):
        http._require_ok("https://x/a", answer)


def test_a_server_that_knows_no_head_is_asked_for_its_first_byte(server: FaultyServer, tmp_path: Path) -> None:
    server.heads["a"] = Fault(status=405)
    manifest = manifest_of(server, tmp_path)
    assert fetch(manifest)["bytes"] == len(A)
    assert visible(root_of(manifest)) == {"a": A}


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(pause_s=0.02, piece=30_000)]
    manifest = manifest_of(server, tmp_path)
    fetch(manifest, timeout_s=1.0)
    assert visible(root_of(manifest)) == {"a": A}
    server.files["b"] = A
    server.always["b"] = Fault(pause_s=1.0, piece=1000)
    with pytest.raises(FetchError, match=r"/b: brought nothing for 0.15 s"):
        fetch(manifest_of(server, tmp_path, {"path": "b"}), timeout_s=0.15, attempts=1)


def test_size_and_time_are_told_beforehand_and_what_is_unknown_is_said(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(server, tmp_path)
    summary = fetch(manifest, dry_run=True)
    assert "1 files to fetch, 300.0 kB; less than a minute at 1 MB/s" in capsys.readouterr().err
    assert (summary["files_to_fetch"], summary["bytes_to_fetch"], summary["files_of_unknown_size"]) == (1, len(A), 0)
    assert not root_of(manifest).exists()
    monkeypatch.setattr(plan, "_PROBE_FROM_BYTES", 1000)
    fetch(manifest, dry_run=True)
    assert "/s of one connection" in capsys.readouterr().err
    server.heads["a"] = server.always["a"] = Fault(says_no_length=True)
    assert fetch(manifest)["fetched"] == 1
    assert "0 bytes and 1 of unknown size; time unknown" in capsys.readouterr().err
    assert visible(root_of(manifest)) == {"a": A}


def test_what_is_here_and_right_is_not_asked_for_again(server: FaultyServer, tmp_path: Path) -> None:
    server.files["b"] = b"bb"
    manifest = manifest_of(server, tmp_path, {"path": "a", "sha256": sha256(A)}, {"path": "b"})
    fetch(manifest)
    server.log.clear()
    assert fetch(manifest)["already_there"] == 2
    assert server.log == []
    shutil.rmtree(root_of(manifest) / ".fetch")  # as if both had been copied here
    summary = fetch(manifest)
    assert (summary["already_there"], summary["held_by_size_alone"]) == (2, 1)
    assert [method for method, _, _ in server.log] == ["HEAD"]


@pytest.mark.parametrize("sums", [{}, {"sha256": sha256(A)}])
def test_what_is_here_and_wrong_is_replaced(server: FaultyServer, tmp_path: Path, sums: dict[str, str]) -> None:
    manifest = manifest_of(server, tmp_path, {"path": "a", **sums})
    fetch(manifest)
    (root_of(manifest) / "a").write_bytes(noise(len(A), seed=1))
    assert fetch(manifest)["replaced"] == 1
    assert visible(root_of(manifest)) == {"a": A}


def test_verify_reads_again_what_kept_its_size_and_time(server: FaultyServer, tmp_path: Path) -> None:
    import os

    manifest = manifest_of(server, tmp_path)
    fetch(manifest)
    file = root_of(manifest) / "a"
    before = file.stat()
    file.write_bytes(A[:-1] + b"x")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch(manifest)["already_there"] == 1
    assert fetch(manifest, verify=True)["replaced"] == 1
    assert visible(root_of(manifest)) == {"a": A}


def test_what_began_as_another_version_is_not_gone_on_with(server: FaultyServer, tmp_path: Path) -> None:
    server.always["a"] = Fault(cut_after=100_000, ignores_range=True)
    manifest = manifest_of(server, tmp_path, {"path": "a"})
    with pytest.raises(FetchError):
        fetch(manifest, attempts=1)
    assert partials(root_of(manifest)) == [100_000]
    server.always.clear()
    server.log.clear()
    server.files["a"], server.tags["a"] = noise(len(A), seed=2), '"second"'
    fetch(manifest)
    assert server.gets("a") == [None]
    assert visible(root_of(manifest)) == {"a": server.files["a"]}


def test_a_stopped_fetch_goes_on_with_the_next_command(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["a"] = [Fault(cut_after=100_000)]
    manifest = manifest_of(server, tmp_path)
    with pytest.raises(FetchError):
        fetch(manifest, attempts=1)
    server.log.clear()
    fetch(manifest)
    assert server.gets("a") == ["bytes=100000-"]
    assert visible(root_of(manifest)) == {"a": A}


def test_one_bad_file_keeps_none_of_the_others_away(server: FaultyServer, tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(8)]
    server.files |= {name: noise(1000, seed=n) for n, name in enumerate(names)}
    server.always |= {name: Fault(status=500) for name in names[:7]}
    manifest = manifest_of(server, tmp_path, *({"path": name} for name in names))
    with pytest.raises(FetchError, match=r"^7 of 8 files cannot be fetched \(1 are in place.*\| … 2 more$"):
        fetch(manifest, attempts=1)
    assert visible(root_of(manifest)) == {"f7": server.files["f7"]}
    server.always.clear()
    assert fetch(manifest)["already_there"] == 1
    assert visible(root_of(manifest)) == {name: server.files[name] for name in names}


def test_after_twenty_failures_the_rest_is_not_tried(server: FaultyServer, tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(60)]
    server.files |= dict.fromkeys(names, b"x")
    server.always |= {name: Fault(status=500) for name in names}
    with pytest.raises(FetchError, match="20 of 60 files"):
        fetch(manifest_of(server, tmp_path, *({"path": name} for name in names)), attempts=1)
    assert sum(method == "GET" for method, _, _ in server.log) < 40


def test_a_disk_without_room_is_told_before_the_first_byte(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder: SimpleNamespace(free=transfer.RESERVE_BYTES))
    with pytest.raises(ResourceError, match=r"300.0 kB are to be fetched \(300000 bytes\)"):
        fetch(manifest_of(server, tmp_path))
    assert server.gets("a") == []


def test_an_archive_needs_room_for_what_it_unpacks_to_as_well(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a.tif", A)
    size = (tmp_path / "z").stat().st_size
    server.files["z.zip"] = (tmp_path / "z").read_bytes()
    manifest = manifest_of(server, tmp_path, {"path": "z.zip", "unpack": "images"})
    for factor, room in ((2, True), (2 - 1 / size, False)):
        free = transfer.RESERVE_BYTES + round(factor * size)
        monkeypatch.setattr(plan.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        with (
            nullcontext()
            if room
            else pytest.raises(ResourceError, match=r"and what they unpack to takes 300.. kB more")
        ):
            fetch(manifest, root=tmp_path / f"root{room}")


def test_a_disk_that_fills_up_keeps_what_has_come(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = manifest_of(server, tmp_path)
    server.faults["a"] = [Fault(cut_after=100_000)]
    with pytest.raises(FetchError):
        fetch(manifest, attempts=1)

    def full(self: transfer.Transfer, start: int, facts: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transfer.Transfer, "_receive", full)
        assert cli.main(["fetch", str(manifest)]) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellbridge")]
    assert line.startswith(f"cellbridge fetch: ResourceError: {root_of(manifest)}: No space left on device")
    assert partials(root_of(manifest)) == [100_000]
    fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}


def test_an_error_is_one_line_with_url_found_and_expected_and_exit_code_2(
    server: FaultyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.always["a"] = Fault(wrong=True)
    code = cli.main(["fetch", str(manifest_of(server, tmp_path)), "--set", "first_wait_s=0.001", "--json"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert line.startswith(f"cellbridge fetch: FetchError: {server.url}/a: its sha256 is ")
    assert sha256(A) in line


def test_an_archive_becomes_visible_whole_and_is_not_fetched_again(server: FaultyServer, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("week1/a.tif", A)
        archive.writestr("week1/b.tif", b"b")
    server.files["z.zip"] = (tmp_path / "z").read_bytes()
    manifest = manifest_of(server, tmp_path, {"path": "z.zip", "unpack": "images", "plates": ["P1"]})
    assert fetch(manifest, plates=["P1"])["fetched"] == 1
    assert visible(root_of(manifest)) == {"images/week1/a.tif": A, "images/week1/b.tif": b"b"}
    assert fetch(manifest)["already_there"] == 1
    (root_of(manifest) / "images/week1/b.tif").write_bytes(b"")  # lost: it is an earlier member, so it may be replaced
    assert fetch(manifest)["fetched"] == 1
    assert visible(root_of(manifest))["images/week1/b.tif"] == b"b"


def test_a_hostile_archive_leaves_nothing_and_the_other_files_come(server: FaultyServer, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("good", b"good")
        archive.writestr("../../evil", b"evil")
    server.files["z.zip"] = (tmp_path / "z").read_bytes()
    manifest = manifest_of(server, tmp_path, {"path": "z.zip", "unpack": "."}, {"path": "a"})
    with pytest.raises(FetchError, match=r"/z.zip: member '../../evil' climbs out of its folder"):
        fetch(manifest)
    assert visible(root_of(manifest)) == {"a": A}
    assert not list(tmp_path.rglob("evil"))
    assert partials(root_of(manifest)) == []


@pytest.mark.parametrize("name", [".fetch/fetched.jsonl", "manifest.yaml"])
def test_no_archive_writes_the_record_or_the_manifest(server: FaultyServer, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr(name, "evil")
    server.files["z.zip"] = (tmp_path / "z").read_bytes()
    manifest = manifest_of(server, tmp_path, {"path": "z.zip", "unpack": "."})
    with pytest.raises(FetchError, match="is a place that fetch keeps for itself"):
        fetch(manifest, root=manifest.parent)
    assert "evil" not in "".join(path.read_text() for path in manifest.parent.rglob("*") if path.is_file())


def test_an_interrupt_says_that_the_same_command_goes_on(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files |= {f"f{n}": b"x" for n in range(40)}
    manifest = manifest_of(server, tmp_path, *({"path": f"f{n}"} for n in range(40)))

    def interrupted(*arguments: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cellbridge.stages.fetch._place", interrupted)
        with pytest.raises(StoppedBySignal, match="the same command goes on") as stopped:
            fetch(manifest)
    assert stopped.value.exit_code == 130
    assert sum(method == "GET" for method, _, _ in server.log) < 20  # what waited was not begun
    fetch(manifest)
    assert len(visible(root_of(manifest))) == 40


def test_sigterm_ends_a_fetch_as_ctrl_c_does(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(server, tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("cellbridge.stages.fetch._place", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedBySignal, match="the same command goes on") as stopped:
            fetch(manifest)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_server_that_says_nothing_keeps_nobody_who_wants_to_stop() -> None:
    ended: list[str] = []

    async def silent() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    def pause(seconds: float) -> None:
        raise Stopped

    loop = get_loop()
    with pytest.raises(Stopped):
        awaited(silent(), loop, pause=pause)
    awaited(asyncio.sleep(0), loop, pause=never_stopped)  # behind the step that was cancelled
    assert ended == ["cancelled"]


def test_two_at_once_do_not_fetch_to_one_place(server: FaultyServer, tmp_path: Path) -> None:
    from cellbridge import runs

    manifest = manifest_of(server, tmp_path)
    with runs.exclusive(runs.RunDir(root_of(manifest) / ".fetch")), pytest.raises(RunError, match="in use by"):
        fetch(manifest)


def test_a_manifest_without_the_section_says_so(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, {"files": [{"path": "a"}], "url": "https://x"})
    values = yaml.safe_load(manifest.read_text())
    del values["fetch"]
    manifest.write_text(yaml.safe_dump(values))
    with pytest.raises(ManifestError, match="has no section fetch"):
        fetch(manifest)


def test_waits_double_stay_bounded_and_honour_the_server() -> None:
    import random

    patience = transfer.Patience(attempts=9, first_wait_s=0.5, longest_wait_s=30.0)
    waits = [patience.wait_s(n, None, random.Random(0)) for n in range(1, 12)]
    assert all(
        0.75 * full <= wait <= full for wait, full in zip(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30], strict=True)
    )
    assert patience.wait_s(1, 20.0, random.Random(0)) == 20.0
    assert patience.wait_s(1, 1e6, random.Random(0)) == 60.0
    assert TryAgain("busy", wait_s=3.0).wait_s == 3.0


def test_the_record_survives_a_line_that_was_cut(server: FaultyServer, tmp_path: Path) -> None:
    server.files["b"] = b"bb"
    manifest = manifest_of(server, tmp_path, {"path": "a"}, {"path": "b"})
    fetch(manifest, workers=1)
    record = root_of(manifest) / ".fetch" / "fetched.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(lines[0] + lines[1][:40])
    assert fetch(manifest)["already_there"] == 2
    (root_of(manifest) / "b").unlink()
    fetch(manifest)
    assert [json.loads(line)["path"] for line in record.read_bytes().splitlines() if line.endswith(b"}")] == ["a", "b"]
