"""What a run has read its text from."""

from typing import Literal

from schemas.base import Schema

Use = Literal["calibration", "evaluation", "recovery"]


class TextFacts(Schema):
    """A text, and how its documents were read, as far as they were needed.

    `commit` is that of a data set on the hub. Some documents were conversations, written by the
    model's chat template, or in paragraphs with a role each if it has none. `empty` rows and those
    that the template `refused` were left out.
    """

    text: str
    use: Use
    commit: str | None = None
    documents: int
    conversations: int = 0
    template: bool = True
    empty: int = 0
    refused: int = 0

    def __str__(self) -> str:
        return f"{self.use} text {self.text}: {'; '.join(self.remarks)}"

    @property
    def remarks(self) -> list[str]:
        """What there is to say about it."""
        found = []
        if self.conversations:
            by = "by the model's chat template" if self.template else "as paragraphs with roles"
            found.append(f"{self.conversations:,} conversations written {by}")
        if self.conversations and not self.template:
            found.append("the model has no chat template")
        if self.empty:
            found.append(f"{self.empty:,} empty rows left out")
        if self.refused:
            found.append(f"{self.refused:,} conversations left out, which its template refuses")
        if self.commit:
            found.append(f"commit {self.commit}")
        return found
