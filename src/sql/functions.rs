//! The scorers as functions of SQL: the same numbers as everywhere else, to the last bit.
//!
//! | function | gives |
//! | --- | --- |
//! | `n_tokens(text)` | word-punct tokens |
//! | `log_importance_weight(text, 'MODEL' [, 'TARGET'])` | Σ over n-grams of log p_target − log p_raw, in nats, by the file of a model |
//! | `gumbel_noise(seed, topic, partition, offset)` | the noise that the document there has |
//! | `gumbel_key(log_weight, temperature, seed, topic, partition, offset)` | `log_weight / temperature` and the noise |

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use datafusion::prelude::SessionContext;

use crate::features::{Featuriser, NgramHash, Scratch};
use crate::record::TopicPartition;
use crate::score::{ImportanceWeight, Model};
use crate::select::Noise;

pub(super) fn register(context: &SessionContext) {
    context.register_udf(ScalarUDF::from(Tokens::new()));
    context.register_udf(ScalarUDF::from(Weight::new()));
    context.register_udf(ScalarUDF::from(Gumbel::new("gumbel_noise", false)));
    context.register_udf(ScalarUDF::from(Gumbel::new("gumbel_key", true)));
}

fn wrong(problem: String) -> DataFusionError {
    DataFusionError::Plan(problem)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Tokens {
    signature: Signature,
}

impl Tokens {
    fn new() -> Self {
        Tokens { signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Tokens {
    fn name(&self) -> &str {
        "n_tokens"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::UInt32)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = args.args[0].to_array(args.number_rows)?;
        let featuriser = Featuriser { max_n: 1, ..Featuriser::with_hash(NgramHash::Fast) };
        let mut scratch = Scratch::default();
        let mut count = |text: &str| featuriser.for_each_chunk(text, &mut scratch, |_| {});
        let counts: UInt32Array = texts.as_string::<i32>().iter().map(|text| text.map(&mut count)).collect();
        Ok(ColumnarValue::Array(Arc::new(counts)))
    }
}

type Weights = Arc<Vec<(String, ImportanceWeight)>>;

/// Models are read when they are first named, and kept as long as the session.
#[derive(Debug)]
struct Weight {
    signature: Signature,
    models: Mutex<HashMap<String, Weights>>,
}

/// All of them read the same files.
impl PartialEq for Weight {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl Eq for Weight {}

impl Hash for Weight {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl Weight {
    fn new() -> Self {
        let with = |n| TypeSignature::Exact(vec![DataType::Utf8; n]);
        // The file may be another one tomorrow.
        let signature = Signature::one_of(vec![with(2), with(3)], Volatility::Stable);
        Weight { signature, models: Mutex::default() }
    }

    fn of(&self, path: &str) -> Result<Weights> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = models.get(path) {
            return Ok(weights.clone());
        }
        let bytes = std::fs::read(path).map_err(|e| wrong(format!("log_importance_weight: model `{path}`: {e}")))?;
        let model =
            Model::from_bytes(&bytes).map_err(|e| wrong(format!("log_importance_weight: model `{path}`: {e}")))?;
        let names = model.targets.iter().map(|target| target.name.clone());
        let weights: Weights = Arc::new(names.zip(ImportanceWeight::of_targets(&model)).collect());
        models.insert(path.to_owned(), weights.clone());
        Ok(weights)
    }
}

impl ScalarUDFImpl for Weight {
    fn name(&self) -> &str {
        "log_importance_weight"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let weights = self.of(literal(&args.args[1], "model")?)?;
        let target = args.args.get(2).map(|target| literal(target, "target")).transpose()?;
        let (_, weight) = match target {
            None if weights.len() == 1 => &weights[0],
            None => return Err(wrong(format!("log_importance_weight: name one of the targets {}", names(&weights)))),
            Some(wanted) => weights.iter().find(|(name, _)| name == wanted).ok_or_else(|| {
                wrong(format!("log_importance_weight: no target `{wanted}`, there are {}", names(&weights)))
            })?,
        };
        let texts = args.args[0].to_array(args.number_rows)?;
        let mut scratch = Scratch::default();
        let mut score = |text: &str| weight.score(text, &mut scratch).log_importance_weight;
        let found: Float64Array = texts.as_string::<i32>().iter().map(|text| text.map(&mut score)).collect();
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

fn names(weights: &Weights) -> String {
    weights.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn literal<'a>(value: &'a ColumnarValue, what: &str) -> Result<&'a str> {
    match value {
        ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => Ok(text),
        _ => Err(wrong(format!("log_importance_weight: the {what} is not a string literal"))),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Gumbel {
    name: &'static str,
    /// Whether a weight and a temperature come first.
    is_key: bool,
    signature: Signature,
}

impl Gumbel {
    fn new(name: &'static str, is_key: bool) -> Self {
        let mut types = if is_key { vec![DataType::Float64; 2] } else { Vec::new() };
        types.extend([DataType::Int64, DataType::Utf8, DataType::Int64, DataType::Int64]);
        Gumbel { name, is_key, signature: Signature::exact(types, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Gumbel {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays: Vec<ArrayRef> = ColumnarValue::values_to_arrays(&args.args)?;
        let (key, place) = arrays.split_at(if self.is_key { 2 } else { 0 });
        let seeds = place[0].as_primitive::<Int64Type>();
        let topics: &StringArray = place[1].as_string::<i32>();
        let (partitions, offsets) = (place[2].as_primitive::<Int64Type>(), place[3].as_primitive::<Int64Type>());
        // Rows come in runs of one partition.
        let mut last: Option<(i64, TopicPartition, Noise)> = None;
        let mut noise = |row: usize| {
            let (seed, topic) = (seeds.value(row), topics.value(row));
            let partition = i32::try_from(partitions.value(row)).map_err(|_| {
                DataFusionError::Execution(format!(
                    "{}: {} is no number of a partition",
                    self.name,
                    partitions.value(row)
                ))
            })?;
            let same = last.take().filter(|(s, at, _)| *s == seed && at.partition == partition && *at.topic == *topic);
            let (seed, at, noise) = same.unwrap_or_else(|| {
                let at = TopicPartition::new(topic, partition);
                let noise = Noise::new(seed as u64, &at);
                (seed, at, noise)
            });
            let drawn = noise.gumbel(offsets.value(row));
            last = Some((seed, at, noise));
            Ok::<f64, DataFusionError>(drawn)
        };
        let value = |row: usize| {
            if arrays.iter().any(|array| array.is_null(row)) {
                return Ok(None);
            }
            let scaled = match key {
                [weights, temperatures] => {
                    weights.as_primitive::<Float64Type>().value(row)
                        / temperatures.as_primitive::<Float64Type>().value(row)
                }
                _ => 0.0,
            };
            Ok(Some(scaled + noise(row)?))
        };
        let drawn: Float64Array = (0..arrays[0].len()).map(value).collect::<Result<_>>()?;
        Ok(ColumnarValue::Array(Arc::new(drawn)))
    }
}

#[cfg(test)]
mod tests {
    use arrow::record_batch::RecordBatch;
    use futures::TryStreamExt;
    use proptest::prelude::*;

    use super::*;
    use crate::score::{NgramCounts, Side, Target};
    use crate::sql::{Limits, Session};

    fn model(targets: &[(&str, &str)]) -> Model {
        let featuriser = Featuriser::with_hash(NgramHash::Fast);
        let side = |text: &str| {
            let mut counts = NgramCounts::zero(featuriser.buckets as usize);
            counts.add_text(text, &featuriser, &mut Scratch::default());
            Side::of(counts)
        };
        let proportion = 1.0 / targets.len() as f64;
        let targets: Vec<_> = targets
            .iter()
            .map(|(name, text)| Target { name: (*name).to_owned(), proportion, side: side(text) })
            .collect();
        let one = Model::of_one_target(featuriser, targets[0].side.clone(), side("a é b c d e f")).unwrap();
        Model { targets, ..one }.validated().unwrap()
    }

    /// The answer to a question about a table `t`, which `rows` are in if there are any.
    fn ask(question: &str, rows: Option<RecordBatch>) -> std::result::Result<Vec<RecordBatch>, String> {
        let limits = Limits { memory_bytes: 64 << 20, disk_bytes: 0, scratch_dir: None };
        let session = Session::new(&limits).unwrap();
        if let Some(rows) = rows {
            session.context.register_batch("t", rows).unwrap();
        }
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let answer = session.ask(question).await.map_err(|e| e.to_string())?;
            answer.batches.try_collect().await.map_err(|e| crate::sql::SqlError::from(e).to_string())
        })
    }

    fn column(batches: &[RecordBatch], i: usize) -> Vec<Option<f64>> {
        batches
            .iter()
            .flat_map(|batch| batch.column(i).as_primitive::<Float64Type>().iter().collect::<Vec<_>>())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn they_are_the_functions_of_everything_else(
            texts in proptest::collection::vec(proptest::option::of("[a-eé ]{0,30}|\\PC{0,20}"), 1..40),
            seed in any::<i64>(), offset in 0i64..1_000_000, temperature in 0.1f64..4.0,
        ) {
            let model = model(&[("one", "a é b"), ("two", "e f")]);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), model.to_bytes()).unwrap();
            let offsets = arrow::array::Int64Array::from_iter_values((0..texts.len() as i64).map(|i| offset + i));
            let partitions = arrow::array::Int32Array::from_iter_values((0..texts.len() as i32).map(|i| i / 7));
            let rows = RecordBatch::try_from_iter([
                ("text", Arc::new(StringArray::from(texts.clone())) as ArrayRef),
                ("offset", Arc::new(offsets)),
                ("partition", Arc::new(partitions)),
            ]);
            let path = file.path().display();
            let question = format!(
                "SELECT log_importance_weight(text, '{path}', 'one'), log_importance_weight(text, '{path}', 'two'), \
                 gumbel_noise({seed}, 'docs', partition, \"offset\"), \
                 gumbel_key(2.5, {temperature}, {seed}, 'docs', partition, \"offset\"), cast(n_tokens(text) AS double) FROM t"
            );
            let found = ask(&question, Some(rows.unwrap())).unwrap();
            let (weights, mut scratch) = (ImportanceWeight::of_targets(&model), Scratch::default());
            for (i, weight) in weights.iter().enumerate() {
                let mut of = |text: &String| weight.score(text, &mut scratch).log_importance_weight;
                prop_assert_eq!(column(&found, i), texts.iter().map(|text| text.as_ref().map(&mut of)).collect::<Vec<_>>());
            }
            let noise = |i: usize| {
                Noise::new(seed as u64, &TopicPartition::new("docs", i as i32 / 7)).gumbel(offset + i as i64)
            };
            prop_assert_eq!(column(&found, 2), (0..texts.len()).map(|i| Some(noise(i))).collect::<Vec<_>>());
            prop_assert_eq!(column(&found, 3), (0..texts.len()).map(|i| Some(2.5 / temperature + noise(i))).collect::<Vec<_>>());
            let mut tokens = |text: &String| f64::from(weights[0].score(text, &mut scratch).n_tokens);
            prop_assert_eq!(column(&found, 4), texts.iter().map(|text| text.as_ref().map(&mut tokens)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn mistakes_are_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model(&[("one", "a"), ("two", "b")]).to_bytes()).unwrap();
        let path = file.path().display();
        let problem = |question: &str| ask(question, None).unwrap_err();
        let of = |rest: &str| problem(&format!("SELECT log_importance_weight('a', {rest})"));
        assert_eq!(of(&format!("'{path}'")), "log_importance_weight: name one of the targets `one`, `two`");
        assert_eq!(of(&format!("'{path}', 'x'")), "log_importance_weight: no target `x`, there are `one`, `two`");
        assert!(of("'none.wnw'").starts_with("log_importance_weight: model `none.wnw`: No such file"));
        assert_eq!(
            problem("SELECT gumbel_noise(1, 't', 3000000000, 0)"),
            "gumbel_noise: 3000000000 is no number of a partition"
        );
        let broken = problem("SELECT log_importance_weight('a', x) FROM (VALUES ('m'), ('n')) AS v(x)");
        assert_eq!(broken, "log_importance_weight: the model is not a string literal");
    }
}
