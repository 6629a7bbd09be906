"""What there is to fetch: places that stay beneath the root, URLs that follow from the manifest, and the plates and wells asked for."""

from pathlib import Path
from typing import Any

import pytest
from small_set import fetch, noise, visible, write_manifest

from cellbridge.data.catalogue import read_catalogue
from cellbridge.data.fetch.items import Item, Place, Selection, distinct, images_of, join_url, listed_files
from cellbridge.data.manifest import read_manifest, resolve_path
from cellbridge.errors import ConfigError, FetchError, ManifestError

BUCKET = "s3://bucket/project"


def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "set" / "manifest.yaml", tmp_path / "data")


@pytest.mark.parametrize(
    ("base", "text", "url"),
    [
        ("https://x.org/set", "a b/c#1.csv", "https://x.org/set/a%20b/c%231.csv"),
        ("https://x.org/set/", "a.csv", "https://x.org/set/a.csv"),
        (BUCKET, "a b/c#1.csv", f"{BUCKET}/a b/c#1.csv"),
        (BUCKET, "https://y.org/d.zip?sig=%2F", "https://y.org/d.zip?sig=%2F"),
        ("", "s3://other/a", "s3://other/a"),
    ],
)
def test_a_url_is_whole_or_relative_to_the_section_s(tmp_path: Path, base: str, text: str, url: str) -> None:
    assert join_url(base, text, place=place(tmp_path), where="m") == url


@pytest.mark.parametrize(
    ("base", "text", "said"),
    [
        ("", "a.csv", "has no URL"),
        (BUCKET, "gopher://x/a", "is not understood"),
        ("source", "../secret", "lies outside"),
        ("source", "/etc/passwd", "lies outside"),
        ("source", "file:///etc/passwd", "lies outside"),
        (BUCKET, "file:///etc/passwd", None),
    ],
)
def test_a_local_file_comes_from_beneath_the_url_only(tmp_path: Path, base: str, text: str, said: str | None) -> None:
    if said is None:  # it is taken for a key of the bucket, and no local file is opened
        assert join_url(base, text, place=place(tmp_path), where="m").startswith(BUCKET)
        return
    with pytest.raises(ManifestError, match=rf"m: .*{said}"):
        join_url(base, text, place=place(tmp_path), where="m")


@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "/etc/a", ".fetch/a", "a\\..\\..\\b", "a\nb", "s3://x/a", "../set/manifest.yaml"]
)
def test_a_place_that_is_not_beneath_the_root_is_refused(tmp_path: Path, path: str) -> None:
    manifest = write_manifest(tmp_path / "set", {"url": BUCKET, "files": [{"path": path}]})
    section = read_manifest(manifest, root=tmp_path)[0].fetch
    assert section is not None
    with pytest.raises(ManifestError, match=r"manifest.yaml fetch.files\[0\]"):
        listed_files(section, place(tmp_path), Selection())


def test_one_place_has_one_source(tmp_path: Path) -> None:
    one = Item("https://x/a", "a", "row 1")
    assert distinct([one, Item("https://x/a", "a", "row 2")]) == [one]
    with pytest.raises(ManifestError, match=r"row 2: a comes from https://y/a, and in row 1 from https://x/a"):
        distinct([one, Item("https://y/a", "a", "row 2")])
    with pytest.raises(ManifestError, match="row 2: a/b lies beneath a, which row 1 says is a file"):
        distinct([one, Item("https://x/b", "a/b", "row 2")])


def plates(tmp_path: Path, *, urls: bool = True, **changes: Any) -> Path:
    """Lay out two plates of two wells as a server's folder, and a manifest that fetches them."""
    source, lines = tmp_path / "source", []
    for index, (plate, well) in enumerate((p, w) for p in ("P1", "P2") for w in ("A01", "B02")):
        row = [plate, well.lower(), "DMSO"]
        for number, channel in enumerate(("DNA", "ER", "Brightfield")):
            file = source / "images" / plate / f"{well}_{channel}.tif"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(noise(500, seed=3 * index + number))
            row += [f"{BUCKET}/images/{plate}/{file.name}"] if urls else [f"images/{plate}", file.name]
        lines.append(",".join(row))
    kinds = ["URL_Orig{}"] if urls else ["PathName_{}", "FileName_{}"]
    header = [kind.format(channel) for channel in ("DNA", "ER", "Brightfield") for kind in kinds]
    (source / "load_data.csv").write_text(
        "\n".join([",".join(["Metadata_Plate", "Metadata_Well", "Metadata_Compound", *header]), *lines])
    )
    files = {"url": "../source", "files": [{"path": "load_data.csv"}], "images": True, **changes.pop("fetch", {})}
    return write_manifest(tmp_path / "set", files, control="Metadata_Compound=DMSO", **changes)


@pytest.mark.parametrize(
    ("asked", "wells"),
    [
        ({}, {"P1/A01", "P1/B02", "P2/A01", "P2/B02"}),
        ({"plates": ["P2"]}, {"P2/A01", "P2/B02"}),
        ({"plates": "P1,P2", "wells": ["a1"]}, {"P1/A01", "P2/A01"}),
        ({"wells": ["P2/B2"]}, {"P2/B02"}),
    ],
)
def test_the_plates_and_wells_asked_for_come_without_channels_left_out(
    tmp_path: Path, asked: dict[str, Any], wells: set[str]
) -> None:
    manifest = plates(tmp_path, urls=False)
    fetch(manifest, **asked)
    expected = {f"images/{well}_{channel}.tif" for well in wells for channel in ("DNA", "ER")} | {"load_data.csv"}
    found = visible(manifest.parent / "data")
    assert set(found) == expected
    assert all(content == (tmp_path / "source" / name).read_bytes() for name, content in found.items())


def test_what_was_fetched_is_where_the_readers_look(tmp_path: Path) -> None:
    manifest = plates(tmp_path, urls=False)
    fetch(manifest)
    rows, _ = read_catalogue(*read_manifest(manifest))
    assert all(plane.file.is_file() for row in rows for plane in row.images.values())


def test_an_image_s_url_is_the_one_that_its_prefix_maps_to_its_place(tmp_path: Path) -> None:
    prefixes = {f"{BUCKET}/": ".", "s3://other/flat": "images/P2", "/home/ubuntu/bucket/": "."}
    manifest, _ = read_manifest(plates(tmp_path, prefixes=prefixes, fetch={"url": ""}), root=tmp_path / "source")
    assert manifest.fetch is not None
    here = Place(tmp_path / "set" / "manifest.yaml", tmp_path / "source")
    items = images_of(manifest, manifest.fetch, here, Selection(frozenset(["P1"])))
    assert [item.url for item in items][:2] == [f"{BUCKET}/images/P1/A01_DNA.tif", f"{BUCKET}/images/P1/A01_ER.tif"]
    for item in items:  # the way back is the reader's own
        assert resolve_path(item.url, here.root, where="", prefixes=prefixes) == here.root / item.path
    two, _ = read_manifest(plates(tmp_path, prefixes={**prefixes, "https://mirror/": "."}), root=tmp_path / "source")
    assert two.fetch is not None
    with pytest.raises(ManifestError, match="two prefixes stand for one folder"):
        images_of(two, two.fetch, here, Selection(frozenset(["P1"])))


def test_a_plate_that_is_not_there_gets_the_nearest_that_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'--plates "P3": the tables have no such plate. Did you mean "P[12]"'):
        fetch(plates(tmp_path, urls=False), plates=["P3"])


def test_plates_that_nothing_is_listed_by_are_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "set", {"url": "../source", "files": [{"path": "a"}]})
    with pytest.raises(ConfigError, match="nothing in the manifest's fetch section is listed by plate"):
        fetch(manifest, plates=["P1"])
    with pytest.raises(ConfigError, match="listed by well"):
        fetch(manifest, wells=["A01"])
    assert not (tmp_path / "set" / "data").exists()


def test_a_table_of_files_gives_places_urls_and_checksums(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "x1").write_bytes(b"one")
    (source / "x2").write_bytes(b"two")
    header = "file;from;md5sum;bytes;plate"
    rows = ["a.tif;x1;f97c5d29941bfb1b2fdab0874906ab82;3;P1", "b.tif;x2;B8A9F715DBB64FD5C56E7783C6820A61;3;P2"]
    (source / "files.csv").write_text("\n".join([header, *rows]))
    table = {
        "table": "files.csv",
        "path": "file",
        "url": "from",
        "md5": "md5sum",
        "size_bytes": "bytes",
        "plate": "plate",
    }
    manifest = write_manifest(
        tmp_path / "set", {"url": "../source", "files": [{"path": "files.csv"}], "tables": [table]}
    )
    assert fetch(manifest, plates=["P2"])["fetched"] == 2
    assert visible(manifest.parent / "data")["b.tif"] == b"two"
    assert "a.tif" not in visible(manifest.parent / "data")
    (source / "x1").write_bytes(b"eno")
    with pytest.raises(
        FetchError, match=r"x1: its md5 is .*, expected f97c5d29941bfb1b2fdab0874906ab82 \(by files.csv row 2\)"
    ):
        fetch(manifest)


def test_each_plate_may_have_a_table_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for plate in ("P1", "P2"):
        (source / f"{plate}.tif").write_bytes(plate.encode())
        (source / f"{plate}.csv").write_text(f"path,plate\n{plate}.tif,{plate}\n")
    names = [f"{plate}.csv" for plate in ("P1", "P2")]
    section = {"files": [{"path": name} for name in names], "tables": [{"table": n, "plate": "plate"} for n in names]}
    manifest = write_manifest(tmp_path / "set", {"url": "../source", **section})
    fetch(manifest, plates=["P2"])
    assert set(visible(manifest.parent / "data")) == {*names, "P2.tif"}
    with pytest.raises(ConfigError, match=r'--plates "P3": the tables have no such plate. Did you mean "P[12]"'):
        fetch(manifest, plates=["P3"])


FILES_OF_WELLS = ["P1,a1", "P1,B02", "P2,A01", "P2,C03", "P2,", ",D04", ","]


def tables_of_wells(tmp_path: Path, *, columns: tuple[str, ...] = ("plate", "well"), plate_format: int = 384) -> Path:
    """Write a manifest with a table of files of wells, some of no plate or no well, and no images; file n is n.tif."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(len(FILES_OF_WELLS)):
        (source / f"{number}.tif").write_bytes(b"tif")
    lines = [f"{number}.tif,{places}" for number, places in enumerate(FILES_OF_WELLS)]
    (source / "files.csv").write_text("\n".join(["path,plate,well", *lines]))
    table = {"table": "files.csv", **{name: name for name in columns}}
    section = {"url": "../source", "files": [{"path": "files.csv"}], "tables": [table]}
    return write_manifest(tmp_path / "set", section, plate_format=plate_format)


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({"plates": ["P1"], "wells": ["B02"]}, "16"),
        ({"plates": ["P1"], "wells": ["D04"]}, "56"),
        ({"wells": ["A01"]}, "0246"),
        ({"wells": ["P2/A01", "P1/D4"]}, "2456"),
        ({"wells": ["P1/B02"]}, "16"),
        ({"plates": ["P2"]}, "23456"),
    ],
)
def test_a_file_of_no_plate_or_well_belongs_to_all_and_any_other_to_its_own(
    tmp_path: Path, asked: dict[str, Any], numbers: str
) -> None:
    manifest = tables_of_wells(tmp_path)
    fetch(manifest, **asked)
    assert set(visible(manifest.parent / "data")) == {"files.csv", *(f"{number}.tif" for number in numbers)}


def test_a_well_that_only_another_plate_has_is_refused(tmp_path: Path) -> None:
    manifest = tables_of_wells(tmp_path)
    with pytest.raises(ConfigError, match=r'--wells "C03": the tables have no image of it on the plates asked for'):
        fetch(manifest, plates=["P1"], wells=["C03"])
    with pytest.raises(ConfigError, match=r'--wells "P1/C03": .* Did you mean "P[12]/[A-D]0\d"'):
        fetch(manifest, wells=["P1/C03"])
    with pytest.raises(ConfigError, match='--plates "P3": the tables have no such plate'):
        fetch(manifest, plates=["P3"], wells=["A01"])


def test_a_table_of_wells_alone_goes_for_every_plate(tmp_path: Path) -> None:
    manifest = tables_of_wells(tmp_path, columns=("well",))
    fetch(manifest, wells=["P9/A01"])
    assert set(visible(manifest.parent / "data")) == {"files.csv", "0.tif", "2.tif", "4.tif", "6.tif"}


def test_wells_of_a_table_lie_on_the_manifest_s_plate(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r'files.csv row 5 well: well "C03" is outside a 6-well plate'):
        fetch(tables_of_wells(tmp_path, plate_format=6))


def test_archives_of_plates_come_with_the_wells_of_theirs(tmp_path: Path) -> None:
    archives = [{"path": f"{plate}.txt", "plates": [plate]} for plate in ("P1", "P2")]
    manifest = plates(tmp_path, urls=False, fetch={"files": [{"path": "load_data.csv"}, *archives]})
    for plate in ("P1", "P2"):
        (tmp_path / "source" / f"{plate}.txt").write_text(plate)
    fetch(manifest, wells=["P2/B02"])
    found = set(visible(manifest.parent / "data"))
    assert {"P2.txt", "images/P2/B02_DNA.tif"} <= found
    assert "P1.txt" not in found


@pytest.mark.parametrize(
    ("row", "said"), [("a,xyz,1", 'md5 "xyz" is no md5'), ("a,,many", '"many" is no number'), ("../a,,1", "outside")]
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "files.csv").write_text(f"path,md5,n\n{row}\n")
    table = {"table": "files.csv", "md5": "md5", "size_bytes": "n"}
    fetch_keys = {"url": "../source", "files": [{"path": "files.csv"}], "tables": [table]}
    with pytest.raises(ManifestError, match=rf"files.csv row 2: .*{said}"):
        fetch(write_manifest(tmp_path / "set", fetch_keys))


def test_a_folder_of_this_machine_comes_with_all_below_it(tmp_path: Path) -> None:
    for name in ("maps/a.txt", "maps/deep/b.txt", "other/c.txt"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    manifest = write_manifest(tmp_path / "set", {"url": "../source", "files": [{"path": "platemaps/", "url": "maps/"}]})
    fetch(manifest)
    assert visible(manifest.parent / "data") == {
        "platemaps/a.txt": b"maps/a.txt",
        "platemaps/deep/b.txt": b"maps/deep/b.txt",
    }


@pytest.mark.parametrize("name", [".fetch/fetched.jsonl", ".Fetch/x", "manifest.yaml"])
def test_no_file_of_a_folder_takes_the_place_of_the_record_or_the_manifest(tmp_path: Path, name: str) -> None:
    (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "source" / name).write_text("evil")
    manifest = write_manifest(tmp_path / "set", {"url": "../source", "files": [{"path": "./"}]}, root=".")
    before = manifest.read_bytes()
    with pytest.raises(ManifestError, match="is a place that fetch keeps for itself"):
        fetch(manifest)
    assert visible(manifest.parent) == {"manifest.yaml": before}


def test_a_plane_of_a_zarr_array_brings_its_folder(tmp_path: Path) -> None:
    for name in ("crops.zarr/zarr.json", "crops.zarr/images/c/0/0", "cells.csv"):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(name)
    rows = [f"crops.zarr/images[{n}],P1,A01,DMSO,{'0' * 32}" for n in range(3)]
    header = "path,Metadata_Plate,Metadata_Well,Metadata_Compound,md5"
    (tmp_path / "source" / "cells.csv").write_text("\n".join([header, *rows]))
    section = {"url": "../source", "files": [{"path": "cells.csv"}], "images": True}
    changes = {"kind": "crops", "tables": ["cells.csv"], "control": "Metadata_Compound=DMSO"}
    fetch(write_manifest(tmp_path / "set", section, **changes))
    assert visible(tmp_path / "set" / "data") == visible(tmp_path / "source")


def test_the_source_is_left_as_it_is(tmp_path: Path) -> None:
    manifest = plates(tmp_path, urls=False)
    before = visible(tmp_path / "source")
    for path in [*(tmp_path / "source").rglob("*"), tmp_path / "source"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    fetch(manifest)
    assert visible(tmp_path / "source") == before


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "ftp://x"}, '"ftp://" is not understood'),
        ({"url": "https://x"}, "lists nothing"),
        ({"url": "s3:///", "files": [{"path": "a"}]}, '"s3:///" names no bucket'),
        ({"files": [{"path": "a", "sha265": "1"}]}, 'Did you mean "sha256"'),
        ({"files": [{"path": "a/", "md5": "0" * 32}]}, "is a folder, which has no sha256"),
        ({"files": [{"path": "a", "md5": "123"}]}, "fetch.files.0.md5"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(tmp_path: Path, section: dict[str, Any], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        read_manifest(write_manifest(tmp_path / "set", section), root=tmp_path)
