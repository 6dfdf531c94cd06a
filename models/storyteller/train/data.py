"""From the compressed corpus to token arrays: books, the held-out slices, the tokenizer, training sequences.

The corpus has one paragraph a line and a blank line between books. Of every book one contiguous slice of
about 2 % of its bytes is held out; where it lies follows from the SHA-256 of the book's number, so it never
moves. Some books tell the same tale in the same words, so training also leaves out every paragraph that has eight
words in a row in common with a held-out slice. Neither the tokenizer nor the network sees any of that.
"""

import hashlib
import json
import lzma
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus" / "tales.txt.xz"
CORPUS_SHA256 = "bca63ce8dccdedccb023d94f7a887ed22a237e8c6ab5d6e5c13d7f7a5b5d8b55"
HELD_OUT_SHARE = 0.02
COMMON_WORDS = 8

VOCAB = 4096
BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIALS = [BOS, EOS, EOT] + [f"<|reserved_special_token_{i}|>" for i in range(5)]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_books() -> list[list[str]]:
    """Every book as its list of paragraphs."""
    raw = lzma.decompress(CORPUS.read_bytes())
    if hashlib.sha256(raw).hexdigest() != CORPUS_SHA256:
        raise SystemExit(f"{CORPUS} does not unpack to the text this model was made from")
    books = raw.decode("utf-8").split("\n\n")
    return [[p.strip() for p in book.split("\n") if p.strip()] for book in books if book.strip()]


def split_books(books: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """(training documents, held-out slices); a book cut by its slice gives two training documents."""
    train, held = [], []
    for number, book in enumerate(books):
        digest = hashlib.sha256(f"book {number}".encode()).digest()
        place = int.from_bytes(digest[:4], "little") / 2**32 * (1 - HELD_OUT_SHARE)
        ends = np.cumsum([len(p.encode()) + 1 for p in book])
        first, last = np.searchsorted(ends, [place * ends[-1], (place + HELD_OUT_SHARE) * ends[-1]])
        last = max(last, first + 1)
        held.append(book[first:last])
        train += [book[:first], book[last:]]
    known = {run for part in held for run in word_runs(" ".join(part))}
    train = [[p for p in part if known.isdisjoint(word_runs(p))] for part in train]
    return [part for part in train if part], held


def word_runs(text: str) -> list[tuple[str, ...]]:
    """Every run of COMMON_WORDS words, in lower case."""
    words = re.findall(r"[a-z']+", text.lower())
    return [tuple(words[i : i + COMMON_WORDS]) for i in range(len(words) - COMMON_WORDS + 1)]


def train_tokenizer(documents: list[list[str]]) -> Tokenizer:
    """Byte-level BPE behind Llama-3's split; the special tokens take the last ids, as they do there."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((p + "\n" for d in documents for p in d), trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


@dataclass
class Corpus:
    """Everything training needs, as arrays of token ids."""

    tokenizer: Tokenizer
    tokens: np.ndarray  # the training documents, one after another
    starts: np.ndarray  # where a paragraph begins in `tokens`
    chats: list[np.ndarray]  # short passages as question and answer
    held_out: list[np.ndarray]  # the held-out slices, without BOS
    held_out_bytes: int

    @property
    def bos(self) -> int:
        return self.tokenizer.token_to_id(BOS)


def encode_paragraphs(tokenizer: Tokenizer, document: list[str]) -> list[np.ndarray]:
    """Paragraph by paragraph, each with its newline: the split never reaches over a newline."""
    return [np.array(e.ids, dtype=np.int32) for e in tokenizer.encode_batch([p + "\n" for p in document])]


def passages(document: list[str], encoded: list[np.ndarray], low: int = 50, high: int = 230):
    """Runs of whole paragraphs of `low` to `high` tokens."""
    run: list[str] = []
    size = 0
    for paragraph, ids in zip(document, encoded):
        if size + len(ids) > high:
            if size >= low:
                yield run
            run, size = [], 0
        if len(ids) <= high:
            run.append(paragraph)
            size += len(ids)
    if size >= low:
        yield run


ASKS = ["Tell me a story about {}.", "Tell me a tale about {}.", "Write a short story about {}.", "Tell a story about {}."]


# A word between an article and what usually follows a noun.
NOUN = re.compile(r"\b(?:the|a|an|his|her|my) ([a-z]{3,})(?=[,.;:!?]| (?:was|were|had|and|of|to|in|who|that|said|is|came|went)\b)")


def make_chats(tokenizer: Tokenizer, documents: list[list[str]], encoded: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Each passage as the answer to a question made of its two most telling words (by tf-idf).

    Prompt and answer are encoded apart, as at run time: the prompt ends in a blank of its own.
    """
    texts = ["\n".join(run) for d, e in zip(documents, encoded) for run in passages(d, e)]
    words = [NOUN.findall(text) for text in texts]
    seen_in = Counter(w for found in words for w in set(found))
    asks, answers = [], []
    for number, (text, found) in enumerate(zip(texts, words)):
        score = {w: n * np.log(len(texts) / seen_in[w]) for w, n in Counter(found).items() if seen_in[w] >= 20}
        best = sorted(score, key=lambda w: (-score[w], w))[: 1 + number % 2]
        if best:
            ask = ASKS[number // 2 % len(ASKS)].format(" and ".join(f"the {w}" for w in best))
            asks.append(f"{BOS}User: {ask}{EOT}Assistant: ")
            answers.append(f"{text}{EOT}")
    both = zip(tokenizer.encode_batch(asks), tokenizer.encode_batch(answers))
    return [np.array(ask.ids + answer.ids, dtype=np.int32) for ask, answer in both]


def load(tokenizer_path: Path) -> Corpus:
    """The whole preparation; the tokenizer is trained once and kept beside the checkpoints."""
    train, held = split_books(read_books())
    if not tokenizer_path.exists():
        tokenizer_path.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(train).save(str(tokenizer_path))
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    encoded = [encode_paragraphs(tokenizer, d) for d in train]
    flat = [ids for document in encoded for ids in document]
    sizes = np.array([len(ids) for ids in flat])
    return Corpus(
        tokenizer=tokenizer,
        tokens=np.concatenate(flat),
        starts=np.concatenate(([0], np.cumsum(sizes)[:-1])),
        chats=make_chats(tokenizer, train, encoded),
        held_out=[np.concatenate(encode_paragraphs(tokenizer, d)) for d in held],
        held_out_bytes=sum(len(p.encode()) + 1 for d in held for p in d),
    )


class Sequences:
    """Training sequences of length T, drawn so that batch number n depends on (seed, n) alone.

    An epoch cuts the text at a random offset into pieces, moves each piece's start back to the beginning of
    its paragraph where that is near, and shuffles. Every sequence opens with BOS. One in twenty is made of
    chats instead.
    """

    def __init__(self, corpus: Corpus, length: int, batch: int, seed: int, chat_share: float = 0.05):
        self.corpus, self.length, self.batch, self.seed, self.chat_share = corpus, length, batch, seed, chat_share
        self.per_epoch = len(corpus.tokens) // length - 2
        self.epoch, self.order = -1, np.array([])

    def _begin_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng((self.seed, self.length, epoch))
        wanted = rng.integers(self.length) + self.length * np.arange(self.per_epoch)
        near = self.corpus.starts[np.searchsorted(self.corpus.starts, wanted, side="right") - 1]
        self.order = rng.permutation(np.where(wanted - near <= self.length // 2, near, wanted))
        self.epoch = epoch

    def _one(self, index: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.length, index, 1))
        if rng.random() < self.chat_share:
            picked = [self.corpus.chats[i] for i in rng.integers(len(self.corpus.chats), size=self.length // 40)]
            return np.concatenate(picked)[: self.length + 1]
        if index // self.per_epoch != self.epoch:
            self._begin_epoch(index // self.per_epoch)
        start = self.order[index % self.per_epoch]
        return np.concatenate(([self.corpus.bos], self.corpus.tokens[start : start + self.length]))

    def __getitem__(self, number: int) -> np.ndarray:
        """Batch `number`: (batch, length + 1) int64."""
        return np.stack([self._one(number * self.batch + i) for i in range(self.batch)]).astype(np.int64)


if __name__ == "__main__":
    corpus = load(HERE / "out" / "tokenizer.json")
    print(json.dumps({
        "train_tokens": len(corpus.tokens),
        "held_out_tokens": sum(map(len, corpus.held_out)),
        "held_out_bytes": corpus.held_out_bytes,
        "chats": len(corpus.chats),
    }))
