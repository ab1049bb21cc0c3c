"""A small neural language model: four words before, through one hidden layer, to the next word (Bengio et al. 2003).

Words of the vocabulary have one vector each, for what they are before others and for what they are predicted by (tied). Trained
with Adam; the loss of a batch is a weighted sum of the mean losses of its samples. In float32 and numpy alone.
"""
import numpy

CONTEXT, WIDTH, HIDDEN = 4, 64, 192
RATE, WARM_UP, DECAY = 3e-3, 0.05, (0.9, 0.99)


class Neural:
    def __init__(self, n_words, seed, n_steps):
        dice = numpy.random.default_rng([seed, 4])
        normal = lambda *shape, scale: (dice.standard_normal(shape) * scale).astype(numpy.float32)
        self.parameters = {
            "words": normal(n_words, WIDTH, scale=0.05),
            "in": normal(CONTEXT * WIDTH, HIDDEN, scale=(CONTEXT * WIDTH) ** -0.5),
            "hidden": numpy.zeros(HIDDEN, numpy.float32),
            "out": normal(HIDDEN, WIDTH, scale=HIDDEN ** -0.5),
            "bias": numpy.zeros(n_words, numpy.float32),
        }
        self.moments = {name: (numpy.zeros_like(p), numpy.zeros_like(p)) for name, p in self.parameters.items()}
        self.step, self.n_steps = 0, n_steps

    def size(self):
        return sum(p.size for p in self.parameters.values())

    def forward(self, contexts, words):
        """Losses of words in nats, and what a gradient needs. `contexts`: n × CONTEXT, `words`: n, both words by number."""
        p = self.parameters
        before = p["words"][contexts].reshape(len(words), -1) * 4
        hidden = numpy.tanh(before @ p["in"] + p["hidden"])
        vectors = hidden @ p["out"]
        scores = vectors @ p["words"].T + p["bias"]
        scores -= scores.max(axis=1, keepdims=True)
        numpy.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        losses = -numpy.log(numpy.maximum(scores[numpy.arange(len(words)), words], 1e-30))
        return losses, (before, hidden, vectors, scores)

    def losses(self, contexts, words):
        """The same in pieces, without a gradient."""
        pieces = [self.forward(contexts[i:i + 1024], words[i:i + 1024])[0] for i in range(0, len(words), 1024)]
        return numpy.concatenate(pieces)

    def learn(self, contexts, words, passed, weights):
        """A step on what `forward` has passed on; `weights` of words sum to 1, and nothing flows through them."""
        p, (before, hidden, vectors, errors) = self.parameters, passed
        errors[numpy.arange(len(words)), words] -= 1
        errors *= weights[:, None]
        of_vectors = errors @ p["words"]
        of_hidden = (of_vectors @ p["out"].T) * (1 - hidden ** 2)
        gradients = {
            "words": errors.T @ vectors,
            "in": before.T @ of_hidden,
            "hidden": of_hidden.sum(axis=0),
            "out": hidden.T @ of_vectors,
            "bias": errors.sum(axis=0),
        }
        of_before = (of_hidden @ p["in"].T * 4).reshape(-1, WIDTH)
        order = numpy.argsort(contexts, axis=None, kind="stable")
        numbers, first = numpy.unique(contexts.ravel()[order], return_index=True)
        gradients["words"][numbers] += numpy.add.reduceat(of_before[order], first)
        self.descend(gradients)

    def descend(self, gradients):
        self.step += 1
        # Rises linearly, falls as a cosine to a tenth.
        done = self.step / self.n_steps
        rate = RATE * min(1.0, done / WARM_UP) * (0.55 + 0.45 * numpy.cos(numpy.pi * min(done, 1.0)))
        for name, gradient in gradients.items():
            mean, square = self.moments[name]
            mean += (1 - DECAY[0]) * (gradient - mean)
            square += (1 - DECAY[1]) * (gradient * gradient - square)
            corrected = mean / (1 - DECAY[0] ** self.step)
            self.parameters[name] -= rate * corrected / (numpy.sqrt(square / (1 - DECAY[1] ** self.step)) + 1e-8)


def contexts_of(tokens):
    """The words before each, with 0 before the beginning. `tokens`: of one document, without its mark."""
    padded = numpy.concatenate([numpy.zeros(CONTEXT, tokens.dtype), tokens])
    return numpy.lib.stride_tricks.sliding_window_view(padded, CONTEXT)[:-1]
