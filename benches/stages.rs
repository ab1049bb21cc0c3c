//! Criterion benchmarks of every stage. `WINNOWD_CORPUS=FILE.jsonl` names other documents than the bundled sample.

mod support;
#[path = "support/stages.rs"]
mod way;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::Corpus;
use way::{Work, stages};

fn all(criterion: &mut Criterion) {
    for mut stage in stages(Box::leak(Box::new(Corpus::load()))) {
        let mut group = criterion.benchmark_group(stage.name);
        group.throughput(match stage.work {
            Work::TextBytes(bytes) => Throughput::Bytes(bytes),
            Work::Documents(documents) => Throughput::Elements(documents),
        });
        group.bench_function(BenchmarkId::from_parameter(stage.kernel), |bencher| bencher.iter(&mut stage.pass));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = all
}
criterion_main!(benches);
