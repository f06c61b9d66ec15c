"""Documents as the text that a model reads: conversations by its own chat template."""

from collections.abc import Iterable, Iterator

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from schemas.run.texts import TextFacts, Use
from workers.text.rows import Conversation, Document, is_empty


class Rendering:
    """Makes texts of documents for one tokenizer, and counts them.

    Without a chat template, each message of a conversation is a paragraph that begins with its
    role. Conversations that the template refuses are left out; so are empty documents, unless they
    are to be joined like others (`joins_empty`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, joins_empty: bool = False) -> None:
        self._tokenizer = tokenizer
        self._template = bool(tokenizer.chat_template)
        self._joins_empty = joins_empty
        self._documents = self._conversations = self._empty = self._refused = 0

    def __call__(self, documents: Iterable[Document]) -> Iterator[str]:
        """Yield the texts."""
        for document in documents:
            if is_empty(document) and not self._joins_empty:
                self._empty += 1
                continue
            text = document if isinstance(document, str) else self._written(document)
            if text is None:
                self._refused += 1
                continue
            self._documents += 1
            self._conversations += not isinstance(document, str)
            yield text

    def facts(self, text: str, use: Use, commit: str | None) -> TextFacts:
        """Describe what was read so far."""
        return TextFacts(
            text=text,
            use=use,
            commit=commit,
            documents=self._documents,
            conversations=self._conversations,
            template=self._template,
            empty=self._empty,
            refused=self._refused,
        )

    def _written(self, conversation: Conversation) -> str | None:
        if not self._template:
            paragraphs = (f"{role.capitalize()}: {said}" for role, said in conversation.messages)
            return "\n\n".join(paragraphs)
        messages = [message._asdict() for message in conversation.messages]
        try:
            written = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError:  # it knows no such role, or wants another order of them
            return None
        return str(written)
