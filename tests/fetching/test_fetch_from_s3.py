"""Fetching from S3, anonymously, against a real server of its protocol on this machine (moto)."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_set import fetch, noise, partials, visible, write_manifest

from cellbridge.errors import ConfigError, FetchError, ManifestError

A = noise(300_000)
KEYS = {"set/a.tif": A, "set/maps/b.txt": b"b", "set/maps/deep/c 1+#.txt": b"c", "set/empty": b""}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server with one bucket; tests are skipped where moto or s3fs is not installed."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        running.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client that may write, with the bucket filled."""
    import boto3

    for name in ("http_proxy", "HTTP_PROXY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    secret = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **secret)
    client.create_bucket(Bucket="bucket", ACL="public-read")
    for key, content in KEYS.items():
        client.put_object(Bucket="bucket", Key=key, Body=content, ACL="public-read")
    return client


def manifest_of(tmp_path: Path, *files: dict[str, Any]) -> Path:
    return write_manifest(tmp_path / "set", {"url": "s3://bucket/set/", "files": list(files)})


def test_a_key_arrives_verified_by_its_etag_where_the_manifest_has_no_sum(
    s3: Any, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellbridge.data.fetch.remotes._BLOCK", 70_000)  # several ranges
    manifest = manifest_of(tmp_path, {"path": "a.tif"}, {"path": "empty"})
    summary = fetch(manifest, s3_endpoint=endpoint)
    assert visible(manifest.parent / "data") == {"a.tif": A, "empty": b""}
    assert (summary["bytes"], summary["without_checksum"]) == (len(A), 0)


def test_a_folder_comes_with_all_below_it(s3: Any, endpoint: str, tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, {"path": "maps/"})
    fetch(manifest, s3_endpoint=endpoint)
    assert visible(manifest.parent / "data") == {"maps/b.txt": b"b", "maps/deep/c 1+#.txt": b"c"}
    with pytest.raises(FetchError, match=r"s3://bucket/set/nothing/: (holds no file|is not there)"):
        fetch(manifest_of(tmp_path, {"path": "nothing/"}), s3_endpoint=endpoint)


def test_no_key_of_a_folder_leaves_it(s3: Any, endpoint: str, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="set/climbing/../a.tif", Body=b"evil", ACL="public-read")
    manifest = manifest_of(tmp_path, {"path": "climbing/"})
    with pytest.raises(ManifestError, match=r'climbing/: lists "../a.tif", which would leave climbing'):
        fetch(manifest, s3_endpoint=endpoint)
    assert visible(manifest.parent / "data") == {}


def test_what_lies_here_of_the_same_version_is_gone_on_with(s3: Any, endpoint: str, tmp_path: Path) -> None:
    from cellbridge.data.fetch.items import Item
    from cellbridge.data.fetch.remotes import Access, Facts, Remotes
    from cellbridge.data.fetch.transfer import Partial

    manifest = manifest_of(tmp_path, {"path": "a.tif"})
    root = manifest.parent / "data"
    url = "s3://bucket/set/a.tif"
    facts = Remotes(Access(s3_endpoint=endpoint)).of(url).look(url)
    assert facts == Facts(len(A), hashlib.md5(A).hexdigest(), hashlib.md5(A).hexdigest())
    partial = Partial(root / ".fetch" / "partial", Item(url, "a.tif", "m"))
    partial.begin(facts)
    partial.data.write_bytes(A[:200_000])
    assert fetch(manifest, s3_endpoint=endpoint, dry_run=True)["bytes_to_fetch"] == 100_000
    fetch(manifest, s3_endpoint=endpoint)
    assert visible(root) == {"a.tif": A}
    assert partials(root) == []


def test_bytes_that_are_not_the_etag_s_never_become_visible(
    s3: Any, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    read = S3FileSystem._cat_file

    async def flipped(self: Any, *arguments: Any, **keys: Any) -> bytes:
        block = await read(self, *arguments, **keys)
        return block[:-1] + bytes([block[-1] ^ 1])

    monkeypatch.setattr(S3FileSystem, "_cat_file", flipped)
    manifest = manifest_of(tmp_path, {"path": "a.tif"})
    with pytest.raises(
        FetchError, match=rf"its md5 is .*, expected {hashlib.md5(A).hexdigest()} \(by the server's ETag\)"
    ):
        fetch(manifest, s3_endpoint=endpoint)
    assert visible(manifest.parent / "data") == {}


def test_a_key_or_bucket_that_is_not_there_is_named(s3: Any, endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="s3://bucket/set/nothing: is not there"):
        fetch(manifest_of(tmp_path, {"path": "nothing"}), s3_endpoint=endpoint)
    with pytest.raises(FetchError, match="s3://no-such-bucket/a: is not there"):
        fetch(manifest_of(tmp_path, {"path": "a", "url": "s3://no-such-bucket/a"}), s3_endpoint=endpoint)
    with pytest.raises(FetchError, match=r'is a folder, expected a file. Write its path with "/"'):
        fetch(manifest_of(tmp_path, {"path": "maps"}), s3_endpoint=endpoint)


def test_a_key_that_is_not_public_says_so(s3: Any, endpoint: str, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="set/private", Body=b"secret", ACL="private")
    with pytest.raises(FetchError, match=r"s3://bucket/set/private: may not be read .* --set s3_anonymous=false"):
        fetch(manifest_of(tmp_path, {"path": "private"}), s3_endpoint=endpoint)


def test_a_server_that_is_not_there_is_tried_as_often_as_said(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"s3://bucket/set/a.tif: .*\(2 attempts\)"):
        fetch(manifest_of(tmp_path, {"path": "a.tif"}), s3_endpoint="http://127.0.0.1:9", attempts=2)


def test_images_come_from_the_urls_that_load_data_lists(s3: Any, endpoint: str, tmp_path: Path) -> None:
    channels, lines = ("DNA", "ER"), ["Metadata_Plate,Metadata_Well,Metadata_Compound,URL_OrigDNA,URL_OrigER"]
    for plate in ("P1", "P2"):
        urls = [f"s3://bucket/set/images/{plate}/{channel}.tif" for channel in channels]
        lines.append(",".join([plate, "A01", "DMSO", *urls]))
        for url in urls:
            s3.put_object(Bucket="bucket", Key=url.removeprefix("s3://bucket/"), Body=url.encode(), ACL="public-read")
    s3.put_object(Bucket="bucket", Key="set/load_data.csv", Body="\n".join(lines).encode(), ACL="public-read")
    section = {"url": "s3://bucket/set", "files": [{"path": "load_data.csv"}], "images": True}
    changes = {"channels": ["DNA", "ER"], "leave_out": [], "control": "Metadata_Compound=DMSO"}
    manifest = write_manifest(tmp_path / "set", section, prefixes={"s3://bucket/set/": "."}, **changes)
    fetch(manifest, s3_endpoint=endpoint, plates=["P2"])
    found = visible(manifest.parent / "data")
    assert set(found) == {"load_data.csv", "images/P2/DNA.tif", "images/P2/ER.tif"}
    assert found["images/P2/DNA.tif"] == b"s3://bucket/set/images/P2/DNA.tif"
    two = {**section, "files": [*section["files"], {"path": "load_data.csv", "url": "s3://bucket/other"}]}
    with pytest.raises(ManifestError, match="Correct one of the two"):
        fetch(write_manifest(tmp_path / "set", two), s3_endpoint=endpoint)


def test_without_s3fs_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"pip install 'cellbridge\[s3\]'"):
        fetch(manifest_of(tmp_path, {"path": "a.tif"}))
