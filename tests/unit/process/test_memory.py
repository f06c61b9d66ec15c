"""Memory that a container has left."""

from pathlib import Path

import pytest

from workers.process import memory


@pytest.mark.parametrize(("most", "free"), [("1000000\n", 700_001), ("max\n", None)])
def test_files_that_a_container_has_read_are_no_use_of_its_memory(
    most: str, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path / "none")
    of_host = memory.available_bytes()
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 600000\nactive_file 1\n")
    found = memory.available_bytes()
    assert found == free if free is not None else found > of_host / 2
