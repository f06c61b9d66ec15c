"""Write five tasks for lm-eval into a folder: arithmetic, copying, and Python's documentation.

    python -m benchmarks.tasks build/tasks
    svdllm evaluate CHECKPOINT --baseline MODEL --task-folder build/tasks --tasks offline

Every task is a YAML file and its documents as JSON lines beside it, by an absolute path, so that
`svdllm evaluate` and plain lm-eval read them from anywhere and without a network. The same Python
version writes the same bytes: the texts are the language reference that it ships.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import yaml

DOCUMENTS = 500
SHOTS = 4
TAG = "offline"  # the name of all five together
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")
_WORD = re.compile(r"\b[a-z]{4,8}\b")
_SENTENCE = range(40, 200)  # characters
_COPIED = 12  # words that are read once before they come again

Document = dict[str, Any]


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}


_CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [_metric("acc"), _metric("acc_norm")],
}
# Right is what the model would write itself, token by token.
_GREEDY: dict[str, Any] = {
    "output_type": "loglikelihood",
    "doc_to_target": "{{target}}",
    "metric_list": [_metric("acc")],
}


class Task(NamedTuple):
    """One task: its documents by split, and the fields of its YAML file."""

    splits: dict[str, list[Document]]
    fields: dict[str, Any]


def addition(rng: random.Random) -> Task:
    """Choose the sum of two numbers of two digits among four, after solved examples."""
    documents = []
    for a, b in _two_digits(rng):
        right = a + b
        near = rng.sample([right - 10, right - 1, right + 1, right + 10], 3)
        sums = sorted([right, *near])
        choices = [str(number) for number in sums]
        documents.append({"query": f"{a} + {b} =", "choices": choices, "gold": sums.index(right)})
    splits = {"train": documents[DOCUMENTS:], "test": documents[:DOCUMENTS]}
    return Task(splits, _CHOICE | {"fewshot_split": "train", "num_fewshot": SHOTS})


def addition_written(rng: random.Random) -> Task:
    """Write the sum of two numbers of two digits, after solved examples."""
    documents = [{"query": f"{a} + {b} =", "target": str(a + b)} for a, b in _two_digits(rng)]
    number = {"function": "regex", "regex_pattern": "([0-9]+)"}
    fields = {
        "output_type": "generate_until",
        "doc_to_target": "{{target}}",
        "fewshot_split": "train",
        "num_fewshot": SHOTS,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "filter_list": [{"name": "number", "filter": [number, {"function": "take_first"}]}],
        "metric_list": [_metric("exact_match")],
    }
    return Task({"train": documents[DOCUMENTS:], "test": documents[:DOCUMENTS]}, fields)


def copying(rng: random.Random) -> Task:
    """Continue a list of random words that is read for the second time, by its last word."""
    words = sorted({word for text in topics.values() for word in _WORD.findall(text)})
    documents = []
    for _ in range(DOCUMENTS):
        row = rng.sample(words, _COPIED)
        documents.append({"query": " ".join([*row, *row[:-1]]), "target": row[-1]})
    return Task({"test": documents}, _GREEDY)


def next_sentence(rng: random.Random) -> Task:
    """Choose the sentence that follows another one, among three of other paragraphs."""
    pairs = [
        (one, two)
        for sentences in _paragraphs()
        for one, two in itertools.pairwise(sentences)
        if len(one) in _SENTENCE and len(two) in _SENTENCE
    ]
    everywhere = [two for _, two in pairs]
    documents = []
    for one, two in rng.sample(pairs, min(DOCUMENTS, len(pairs))):
        wrong = rng.sample([text for text in everywhere if text != two], 3)
        gold = rng.randrange(4)
        choices = [*wrong[:gold], two, *wrong[gold:]]
        documents.append({"query": one, "choices": choices, "gold": gold})
    return Task({"test": documents}, _CHOICE)


def last_word(rng: random.Random) -> Task:
    """Write the last word of two sentences, as LAMBADA asks (arXiv 1606.06031)."""
    found = []
    for sentences in _paragraphs():
        for one, two in itertools.pairwise(sentences):
            before, _, word = two.removesuffix(".").rpartition(" ")
            if len(one) in _SENTENCE and len(two) in _SENTENCE and _WORD.fullmatch(word):
                found.append({"query": f"{one} {before}", "target": word})
    return Task({"test": rng.sample(found, min(DOCUMENTS, len(found)))}, _GREEDY)


TASKS: dict[str, Callable[[random.Random], Task]] = {
    "addition": addition,
    "addition_written": addition_written,
    "copying": copying,
    "pydoc_next_sentence": next_sentence,
    "pydoc_last_word": last_word,
}


def write_tasks(folder: Path) -> None:
    """Write the documents and the YAML file of every task into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TASKS.items():
        task = make(random.Random(name))
        files = {}
        for split, documents in task.splits.items():
            path = folder.absolute() / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in documents), "utf-8")
            files[split] = str(path)
        common = {
            "task": name,
            "tag": TAG,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
            "doc_to_text": "{{query}}",
            "metadata": {"version": 1.0},
        }
        text = yaml.safe_dump(common | task.fields, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, "utf-8")
        print(f"{name}: {len(task.splits['test'])} documents")


def _two_digits(rng: random.Random) -> list[tuple[int, int]]:
    """Different pairs, enough for the documents and the examples before them."""
    everything = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    return rng.sample(everything, 2 * DOCUMENTS)


def _paragraphs() -> Iterator[Sequence[str]]:
    """The sentences of each paragraph of prose, which occurs once."""
    seen = set()
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            if text[:1].isupper() and text.endswith(".") and text not in seen:
                seen.add(text)
                yield _SENTENCE_END.split(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_tasks(parser.parse_args().folder)


if __name__ == "__main__":
    main()
