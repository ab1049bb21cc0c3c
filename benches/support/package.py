"""Runs the published DSIR package on files and prints what it took, as one JSON line: package.py RAW TARGET COUNT WORK"""
import json
import pathlib
import resource
import sys
import time

from data_selection import HashedNgramDSIR

raw, target, count, work = sys.argv[1], sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4])

began = time.perf_counter()
dsir = HashedNgramDSIR([raw], [target], cache_dir=str(work / "cache"), num_proc=1)
dsir.fit_importance_estimator(num_tokens_to_fit="all")
fitted = time.perf_counter()
dsir.compute_importance_weights()
dsir.resample(out_dir=str(work / "out"), num_to_sample=count, cache_dir=str(work / "resampled"))
end_to_end = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

documents = [json.loads(line) for line in open(raw, encoding="utf-8")]
began = time.perf_counter()
features = map(dsir.featurizer, (document["text"] for document in documents))
weights = [float(dsir.importance_estimator(feature)) for feature in features]
scoring = time.perf_counter() - began

with open(work / "weights.json", "w") as file:
    json.dump(dict(zip((document["id"] for document in documents), weights)), file)
print(json.dumps({"end_to_end_s": end_to_end, "scoring_s": scoring, "peak_bytes": peak}))
