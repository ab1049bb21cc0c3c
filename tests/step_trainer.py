"""A training loop that weighs the samples of each step as `POST /v1/weights` says. Needs numpy alone.

    python3 tests/step_trainer.py DOCUMENTS.jsonl --weights http://HOST:PORT/v1/weights [--run-id R] [--steps N] [--trace FILE]

The model predicts each byte from the two before it: a softmax over the sum of two rows, one for each of them. A sample is a
stretch of a document. The gradient of a step is that of the weighted sum of its samples' mean losses. Everything follows from the
documents and the seed, so that a trainer that is started again repeats its steps, and gets the same weights. With a token in
WINNOWD_HTTP__TOKEN it says who it is.

Prints the mean loss of the first and of the last tenth of its steps, and of documents that it never learns. --trace writes one
JSON line a step: what was asked, and what was answered.
"""

import argparse
import json
import os
import sys
import urllib.error
import urllib.request

import numpy

LENGTH, BATCH, RATE = 96, 32, 0.5


class Bytes:
    def __init__(self):
        self.tables = numpy.zeros((2, 256, 256))
        self.squares = numpy.full((2, 256, 256), 1e-6)

    @staticmethod
    def cut(stretch):
        """Bytes before the last one, the last ones, and what follows them."""
        return stretch[:-2], stretch[1:-1], stretch[2:]

    def losses(self, samples):
        """The mean loss of each sample, in nats a byte, and the probabilities of each byte in each place."""
        earlier, last, following = self.cut(samples)
        scores = self.tables[0, earlier] + self.tables[1, last]
        scores -= scores.max(axis=-1, keepdims=True)
        probabilities = numpy.exp(scores)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
        of_following = numpy.take_along_axis(probabilities, following[..., None], axis=-1)[..., 0]
        return -numpy.log(of_following).mean(axis=0), probabilities

    def learn(self, samples, probabilities, weights):
        """A step of AdaGrad on the sum of weight times mean loss; nothing flows through the weights."""
        earlier, last, following = self.cut(samples)
        errors = probabilities
        at = numpy.indices(following.shape)
        errors[at[0], at[1], following] -= 1
        errors *= weights[None, :, None] / len(following)
        for number, context in enumerate((earlier, last)):
            gradient = numpy.zeros((256, 256))
            numpy.add.at(gradient, context.ravel(), errors.reshape(-1, 256))
            self.squares[number] += gradient**2
            self.tables[number] -= RATE * gradient / numpy.sqrt(self.squares[number])


def stretches(path):
    """Of documents, by id: (id, bytes) of equal length. Every eighth is kept out."""
    learnt, kept_out = [], []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            text = numpy.frombuffer(record["text"].encode(), numpy.uint8)
            if len(text) >= LENGTH:
                (kept_out if number % 8 == 0 else learnt).append((record["id"], text[:LENGTH].astype(int)))
    return learnt, kept_out


class Weights:
    """Of the samples of a step, which sum to 1."""

    def __init__(self, url, token):
        self.url = url
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def ask(self, question):
        request = urllib.request.Request(self.url, json.dumps(question).encode(), self.headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"step {question['step']}: {error.code} {error.read().decode().strip()}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("documents")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--run-id", default="bytes")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace")
    options = parser.parse_args()
    service = Weights(options.weights, os.environ.get("WINNOWD_HTTP__TOKEN"))
    learnt, kept_out = stretches(options.documents)
    dice, model, losses = numpy.random.default_rng(options.seed), Bytes(), []
    held_out = numpy.array([stretch for _, stretch in kept_out]).T
    before = model.losses(held_out)[0].mean()
    trace = open(options.trace, "w", encoding="utf-8") if options.trace else None
    for step in range(options.steps):
        batch = [learnt[place] for place in dice.integers(len(learnt), size=BATCH)]
        samples = numpy.array([stretch for _, stretch in batch]).T
        of_samples, probabilities = model.losses(samples)
        rows = [{"id": id_, "loss": loss, "n_tokens": LENGTH - 2} for (id_, _), loss in zip(batch, of_samples.tolist())]
        question = {"run_id": options.run_id, "step": step, "losses": rows}
        answer = service.ask(question)
        weights = numpy.array([sample["weight"] for sample in answer["weights"]])
        model.learn(samples, probabilities, weights)
        losses.append(float(of_samples.mean()))
        if trace:
            print(json.dumps({"losses": of_samples.tolist(), "answer": answer}), file=trace)
    if trace:
        trace.close()
    tenth = max(1, len(losses) // 10)
    after = model.losses(held_out)[0].mean()
    mean = lambda some: sum(some) / len(some)
    print(json.dumps({"steps": len(losses), "first_loss": mean(losses[:tenth]), "last_loss": mean(losses[-tenth:]),
                      "held_out_before": float(before), "held_out_after": float(after)}))


if __name__ == "__main__":
    main()
