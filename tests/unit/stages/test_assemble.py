"""What is copied of a base."""

from pathlib import Path

from pipeline.stages.assemble import copy_beside
from workers.checkpoint.tokenizer_files import TOKENIZERS


def test_whatever_may_be_its_tokenizer_is_copied(tmp_path: Path) -> None:
    base, result = tmp_path / "base", tmp_path / "result"
    parts = ("merges.txt", "emoji.json", "tokenizer_config.json", "chat_template.jinja")
    copied = {*TOKENIZERS, *parts, "LICENSE.txt", "preprocessor_config.json"}
    base.mkdir()
    result.mkdir()
    for name in (*copied, "config.json", "model.safetensors", "README.md", "modeling.py"):
        (base / name).write_text(name)
    copy_beside(result, base)
    assert {path.name: path.read_text() for path in result.iterdir()} == {n: n for n in copied}
