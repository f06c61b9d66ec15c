"""English text that comes with Python, and a tokenizer trained on it; torch is not needed."""

from pydoc_data import topics

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 384
END = "<eos>"
STORY = (
    "The city lies on the river, and the river gives it its name. In the old town there are "
    "narrow streets, a market that is held on Saturdays, and the church of the weavers."
)


def prose(characters: int = 100_000) -> str:
    """English text that comes with Python."""
    return "\n\n".join(text for _, text in sorted(topics.topics.items()))[:characters]


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens, the first of which is `END`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer
