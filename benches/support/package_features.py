"""What the published package's featuriser says of every document, kept for many fits: package_features.py OUT FILE…

At 1 to 2 MB of text a second it is what takes the package its time, and it does not depend on the target. Buckets and counts of
all documents, one after the other.
"""
import array
import json
import pathlib
import sys
import tempfile

import numpy
from data_selection import HashedNgramDSIR

out, paths = pathlib.Path(sys.argv[1]), sys.argv[2:]
with tempfile.TemporaryDirectory() as cache:
    dsir = HashedNgramDSIR(paths, paths, cache_dir=cache, num_proc=1)
buckets, counts, starts = array.array("H"), array.array("H"), array.array("q", [0])
for path in paths:
    for line in open(path, encoding="utf-8"):
        features = dsir.featurizer(json.loads(line)["text"])
        found = numpy.flatnonzero(features)
        buckets.frombytes(found.astype(numpy.uint16).tobytes())
        assert features.max() < 1 << 16, "a count of a document of 20 kB"
        counts.frombytes(features[found].astype(numpy.uint16).tobytes())
        starts.append(len(buckets))
out.mkdir(parents=True, exist_ok=True)
for name, numbers, kind in (("buckets", buckets, "uint16"), ("counts", counts, "uint16"), ("starts", starts, "int64")):
    numpy.save(out / f"{name}.unfinished.npy", numpy.frombuffer(numbers, dtype=kind))
for name in ("buckets", "counts", "starts"):
    (out / f"{name}.unfinished.npy").rename(out / f"{name}.npy")
