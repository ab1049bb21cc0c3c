//! What the demo says in the end, computed from the shards themselves.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use arrow::array::{Array, StringArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Outcome;
use super::sample::{Sample, SampleDocument, WANTED};
use crate::catalog::Totals;
use crate::cli::bars::bar;
use crate::features::{Projection, Scratch};
use crate::manifest::ShardManifest;
use crate::record::TopicPartition;
use crate::score::{Model, NgramCounts};
use crate::select::{NearestDistances, Noise, Reservoir};

/// Random selections that the mean is taken over.
const RANDOM_DRAWS: u64 = 20;

pub struct Facts<'a> {
    pub sample: &'a Sample,
    pub model: &'a Model,
    pub totals: Totals,
    pub shards: Vec<(i64, ShardManifest)>,
    pub outcome: &'a Outcome,
    pub out: &'a Path,
}

pub fn print(facts: &Facts<'_>) -> anyhow::Result<()> {
    let Facts { sample, model, totals, shards, outcome, out } = facts;
    let mut selected = HashSet::new();
    for (_, shard) in shards {
        if let Some(path) = &shard.path {
            read_ids(&out.join(path), &mut selected)?;
        }
    }
    let scored = outcome.scored_in.as_secs_f64().max(0.002);
    println!(
        "{} records in, {} selected, {} rejected, {} dead letters (broken on purpose)",
        totals.n_records, totals.n_selected, totals.n_rejected, totals.n_dead_letters
    );
    println!(
        "{:.0} documents/s read and scored; all published {:.1} s after the first was read (idle windows wait 0.5 s)\n",
        sample.n_records() as f64 / scored,
        outcome.decided_in.as_secs_f64()
    );
    print_sources(sample, &selected);
    print_divergence(sample, model, &selected);
    print_coverage(sample, model, &selected);
    print_collapse(shards);

    println!("\nPublished, exactly once:");
    for (sequence, shard) in shards {
        let path = out.join(shard.path.as_deref().unwrap_or_default());
        println!(
            "  {sequence}  {}  {} rows, {} KB, {} windows",
            path.display(),
            shard.rows,
            shard.bytes.div_ceil(1024),
            shard.windows.len()
        );
    }
    println!("  manifest for trainers: {}", out.join("manifest.jsonl").display());
    println!("\nLook at it:");
    let glob = out.join("shards");
    println!(
        "  duckdb -c \"SELECT source, count(*), avg(log_importance_weight) FROM '{}/*.parquet' GROUP BY ALL\"",
        glob.display()
    );
    println!(
        "  python3 -c \"import pyarrow.dataset as d; print(d.dataset('{}').head(5).select(['id', 'n_tokens', 'sample_weight']))\"",
        glob.display()
    );
    println!("\nMetrics were served on http://{}/metrics (--keep leaves them up)", outcome.http);
    Ok(())
}

fn print_sources(sample: &Sample, selected: &HashSet<String>) {
    let mut sources: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for document in &sample.stream {
        let (total, chosen) = sources.entry(&document.source).or_default();
        *total += 1;
        *chosen += usize::from(selected.contains(&document.id));
    }
    let mut rows: Vec<_> = sources.into_iter().collect();
    rows.sort_by(|a, b| share(b.1).total_cmp(&share(a.1)).then(a.0.cmp(b.0)));
    println!("Acceptance by source");
    for (source, counts) in rows {
        let note = if WANTED.contains(&source) { "  ← wanted" } else { "" };
        let bar = bar(share(counts));
        println!("  {source:<20} {bar} {:>5.1} %  {:>4} of {:>4}{note}", 100.0 * share(counts), counts.1, counts.0);
    }
}

fn share((total, chosen): (usize, usize)) -> f64 {
    chosen as f64 / total.max(1) as f64
}

fn print_divergence(sample: &Sample, model: &Model, selected: &HashSet<String>) {
    let mut scratch = Scratch::default();
    let mut buckets_of = |document: &SampleDocument| {
        let mut buckets = Vec::new();
        model.featuriser.for_each_chunk(&document.text, &mut scratch, |chunk| buckets.extend_from_slice(chunk));
        buckets
    };
    let documents: Vec<Vec<u32>> = sample.stream.iter().map(&mut buckets_of).collect();
    let target = model.target_distribution();
    let divergence = |chosen: &mut dyn Iterator<Item = &Vec<u32>>| {
        let mut counts = NgramCounts::zero(model.featuriser.buckets as usize);
        chosen.for_each(|buckets| counts.add_buckets(buckets));
        target.divergence_from(&counts)
    };
    let to_stream = divergence(&mut documents.iter());
    let pairs = sample.stream.iter().zip(&documents);
    let chosen = divergence(&mut pairs.filter(|(d, _)| selected.contains(&d.id)).map(|(_, buckets)| buckets));
    let random: f64 = (0..RANDOM_DRAWS)
        .map(|seed| {
            let mut reservoir = Reservoir::new(selected.len());
            let noise = Noise::new(seed, &TopicPartition::new("random selection", 0));
            for (i, buckets) in documents.iter().enumerate() {
                reservoir.offer(i as i64, noise.gumbel(i as i64), buckets);
            }
            divergence(&mut reservoir.select(selected.len()).chosen.iter().map(|c| c.item))
        })
        .sum::<f64>()
        / RANDOM_DRAWS as f64;
    println!("\nHow much nearer to the target than the whole stream, which is {to_stream:.2} nats away (KL reduction;");
    println!("a small sample lacks rare n-grams, so a random one comes out below zero)");
    for (what, reduction) in [("this selection", to_stream - chosen), ("random, same size", to_stream - random)] {
        println!("  {what:<20} {} {reduction:>6.3} nats", bar(reduction / to_stream));
    }
}

/// AUC_pr of the whole selection, from every document.
fn print_coverage(sample: &Sample, model: &Model, selected: &HashSet<String>) {
    let mut scratch = Scratch::default();
    let mut point =
        |document: &SampleDocument| Projection::OF_TEXTS.of_text(&document.text, &model.featuriser, &mut scratch);
    let points: Vec<Vec<f32>> = sample.stream.iter().map(&mut point).collect();
    let mut distances = [NearestDistances::new(&points), NearestDistances::new(&points)];
    let mut random = Reservoir::new(selected.len());
    let noise = Noise::new(0, &TopicPartition::new("random selection", 0));
    for (i, (document, point)) in sample.stream.iter().zip(&points).enumerate() {
        random.offer(i as i64, noise.sampling(i as i64), point);
        if selected.contains(&document.id) {
            distances[0].selected(point);
        }
    }
    random.into_items().iter().for_each(|chosen| distances[1].selected(chosen.item));
    println!("\nHow far a document is from the nearest selected one (AUC_pr, projected n-grams: lower covers better)");
    for (what, distances) in ["this selection", "random, same size"].into_iter().zip(&distances) {
        let Some(distance) = distances.auc_pr() else { continue };
        // Two texts without an n-gram in common are √2 apart.
        println!("  {what:<20} {} {distance:>6.3}", bar(distance / 2f64.sqrt()));
    }
}

/// Whether the draws were samples: with sums as weights they are not, and this is the place to say so.
fn print_collapse(shards: &[(i64, ShardManifest)]) {
    let windows = || shards.iter().flat_map(|(_, shard)| &shard.windows).filter_map(|window| window.diagnostics);
    let collapsed: Vec<_> = windows().filter(|diagnostics| diagnostics.is_collapsed).collect();
    let Some(temperature) = collapsed.iter().find_map(|diagnostics| diagnostics.suggested_temperature) else { return };
    println!(
        "\nIn {} of {} windows the weights, which are sums over all n-grams, differ so much that the draw is plain top-k.",
        collapsed.len(),
        windows().count()
    );
    println!(
        "`selection.temperature = {temperature:.0}` or `selection.length_normalise = true` would make a sample of it."
    );
}

fn read_ids(path: &Path, ids: &mut HashSet<String>) -> anyhow::Result<()> {
    let name = || format!("shard `{}`", path.display());
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).with_context(name)?).with_context(name)?;
    let id = ProjectionMask::columns(reader.parquet_schema(), ["id"]);
    for batch in reader.with_projection(id).build().with_context(name)? {
        let batch = batch.with_context(name)?;
        let column = batch.column(0).as_any().downcast_ref::<StringArray>().with_context(name)?;
        ids.extend((0..column.len()).map(|i| column.value(i).to_owned()));
    }
    Ok(())
}
