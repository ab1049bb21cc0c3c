"""The corpus as whole numbers: word-punct tokens of the lower-cased text, as winnowd and the published package cut them.

Kept on disk, beside the documents of each kind in a file of their own, and mapped into memory: some 300 MB.
"""
import array
import copy
import json
import re

import numpy

from common import say

TOKEN = re.compile(r"\w+|[^\w\s]+")  # NLTK's WordPunctTokenizer
BEGIN, UNKNOWN = 0, 1  # of a document; every token that occurs once in the corpus
FIRST = 2
FILES = ["tokens.npy", "starts.npy", "documents.json", "vocabulary.txt"]


class Words:
    """Documents by number: their tokens, ids and kinds."""

    def __init__(self, folder):
        self.folder = folder
        self.tokens = numpy.load(folder / "tokens.npy", mmap_mode="r")
        self.starts = numpy.load(folder / "starts.npy")
        documents = json.load(open(folder / "documents.json", encoding="utf-8"))
        self.ids, self.kinds, self.n_words = documents["ids"], numpy.array(documents["kinds"]), documents["n_words"]
        self.number = {id: number for number, id in enumerate(self.ids)}
        self.lengths = numpy.diff(self.starts) - 1  # without the mark of the beginning
        self.extra = []

    def vocabulary(self):
        """Words by number, from FIRST on."""
        return ["", ""] + (self.folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")

    def with_documents(self, documents):
        """These and others that are not of the corpus: ids and tokens, by number."""
        more = copy.copy(self)
        more.extra = [numpy.concatenate([[BEGIN], tokens]).astype(numpy.int32) for _, tokens in documents]
        more.number = self.number | {id: len(self.ids) + i for i, (id, _) in enumerate(documents)}
        more.lengths = numpy.concatenate([self.lengths, [len(tokens) - 1 for tokens in more.extra]])
        return more

    def of(self, number):
        """A mark for the beginning, and the tokens."""
        if number >= len(self.ids):
            return self.extra[number - len(self.ids)]
        return self.tokens[self.starts[number]:self.starts[number + 1]]

    def text(self, numbers, budget=None):
        """Documents one after the other, up to so many tokens (marks do not count); the last one is cut."""
        pieces, left = [], budget
        for number in numbers:
            piece = self.of(number)
            if left is not None:
                piece = piece[:left + 1]
                left -= len(piece) - 1
            pieces.append(piece)
            if left == 0:
                break
        return numpy.concatenate(pieces)

    def file(self, kind):
        return self.folder / f"{kind}.jsonl"


def words(corpus, folder):
    """Tokenises a corpus once."""
    if not all((folder / name).exists() for name in FILES):
        say(f"tokens of {corpus}")
        folder.mkdir(parents=True, exist_ok=True)
        build([corpus / "raw.jsonl", corpus / "target.jsonl"], folder)
    return Words(folder)


def build(paths, folder):
    numbers, tokens, starts, ids, kinds, files = {}, array.array("i"), array.array("q", [0]), [], [], {}
    for path in paths:
        for line in open(path, encoding="utf-8"):
            document = json.loads(line)
            ids.append(document["id"])
            kinds.append(document["source"])
            if document["source"] not in files:
                files[document["source"]] = open(folder / f"{document['source']}.jsonl", "w", encoding="utf-8")
            files[document["source"]].write(line)
            tokens.append(BEGIN)
            tokens.extend(numbers.setdefault(token, len(numbers) + FIRST) for token in TOKEN.findall(document["text"].lower()))
            starts.append(len(tokens))
    for file in files.values():
        file.close()
    tokens = numpy.frombuffer(tokens, dtype=numpy.int32)
    counts = numpy.bincount(tokens, minlength=len(numbers) + FIRST)
    is_word = counts >= 2
    is_word[:FIRST] = False
    new = numpy.full(len(counts), UNKNOWN, dtype=numpy.int32)
    new[BEGIN] = BEGIN
    new[is_word] = numpy.arange(FIRST, FIRST + is_word.sum())
    in_order = [token for token, is_kept in zip(numbers, is_word[FIRST:]) if is_kept]
    (folder / "vocabulary.txt").write_text("\n".join(in_order), encoding="utf-8")
    numpy.save(folder / "tokens.npy", new[tokens])
    numpy.save(folder / "starts.npy", numpy.frombuffer(starts, dtype=numpy.int64))
    with open(folder / "documents.json", "w", encoding="utf-8") as file:
        json.dump({"ids": ids, "kinds": kinds, "n_words": int(FIRST + is_word.sum())}, file)
