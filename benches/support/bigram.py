"""An interpolated bigram language model: absolute discounting over unigrams, and those over all words alike.

p(w | v) = (max(c(v w) − D, 0) + D · N₁₊(v ·) · p(w)) / c(v), p(w) in the same way over 1 / |V|. D is 0.75 (Ney, Essen and Kneser
1994). The vocabulary is a fixed one that all models share, so that their perplexities can be compared: whatever was selected,
every word of the vocabulary has a probability.
"""
import numpy

from words import BEGIN

DISCOUNT = 0.75


class Bigram:
    def __init__(self, text, n_words):
        """`text`: tokens of documents, each with a mark at its beginning, which is predicted by none."""
        self.n_words = n_words
        words = text[text != BEGIN]
        counts = numpy.bincount(words, minlength=n_words)
        left = DISCOUNT * (counts > 0).sum() / len(words)
        self.unigram = numpy.maximum(counts - DISCOUNT, 0) / len(words) + left / n_words
        before, after = text[:-1], text[1:]
        is_pair = after != BEGIN
        pairs = before[is_pair].astype(numpy.int64) * n_words + after[is_pair]
        pairs.sort()
        is_first = numpy.concatenate([[True], pairs[1:] != pairs[:-1]])
        self.pairs = pairs[is_first]
        self.counts = numpy.diff(numpy.append(numpy.flatnonzero(is_first), len(pairs)))
        contexts = self.pairs // n_words
        self.of_context = numpy.bincount(contexts, weights=self.counts, minlength=n_words)
        self.followers = numpy.bincount(contexts, minlength=n_words)

    def perplexity(self, text):
        return float(numpy.exp(self.losses(text).mean()))

    def losses(self, text):
        """Of every word, in nats; marks have none."""
        before, after = text[:-1], text[1:]
        is_pair = after != BEGIN
        before, after = before[is_pair], after[is_pair]
        pairs = before.astype(numpy.int64) * self.n_words + after
        at = numpy.minimum(numpy.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        found = numpy.where(self.pairs[at] == pairs, self.counts[at] - DISCOUNT, 0.0)
        n = self.of_context[before]
        is_known = n > 0
        n = numpy.where(is_known, n, 1.0)
        left = numpy.where(is_known, DISCOUNT * self.followers[before] / n, 1.0)
        probability = numpy.where(is_known, found / n, 0.0) + left * self.unigram[after]
        return -numpy.log(probability)
