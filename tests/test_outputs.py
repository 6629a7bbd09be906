from pathlib import Path

import pytest

from cellbridge.errors import RunError
from cellbridge.outputs import require_apart, require_directory
from cellbridge.runs import publish_directory


def test_nothing_is_written_under_a_file_or_into_what_was_published(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with publish_directory(tmp_path / "model", manifest={}):
        pass
    (tmp_path / "store").mkdir()
    (tmp_path / "store/zarr.json").write_text("{}")
    for place, why in (
        ("file", "is a file"),
        ("file/run", "is a file"),
        ("model", "finished result"),
        ("model/run/deep", "finished result"),
        ("store/run", "finished result"),
    ):
        with pytest.raises(RunError, match=why):
            require_directory(tmp_path / place)


def test_a_directory_that_is_free_or_holds_something_else_will_do(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "of a web page"}')
    require_directory(tmp_path)
    require_directory(tmp_path / "to/be/made")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("out", "relation"),
    [("store", "is"), ("store/new", "lies inside"), (".", "contains"), ("link", "is"), ("x/../store", "is")],
)
def test_a_result_lies_apart_from_its_inputs(tmp_path: Path, out: str, relation: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with pytest.raises(RunError, match=f": {relation} the input"):
        require_apart(tmp_path / out, [tmp_path / "store"])
    require_apart(tmp_path / "store2", [tmp_path / "store"])
