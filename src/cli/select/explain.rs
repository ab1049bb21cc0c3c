//! Why a document was selected or not: its numbers, in the order in which they decide.

use std::collections::HashSet;
use std::fmt::Write;

use serde::Serialize;

use super::draw::Drawn;
use super::measure::Looking;
use super::output::Folder;
use super::report::significant;
use super::spread::{end, name};

/// The file of all decisions.
pub const DECISIONS: &str = "decisions.jsonl";

/// All that decided about one document. Numbers that played no part are `null`.
#[derive(Debug, Default, Serialize)]
pub struct Explanation {
    pub id: String,
    pub is_selected: bool,
    /// In words.
    pub why: String,
    /// Its number among all, from 0; `null` if there is no document of this id.
    document: Option<u32>,
    source: Option<String>,
    /// The source, or the value of `--quota-field`, that is a pool of its own; `null`: it is in the pool of all others.
    pool: Option<String>,
    n_tokens: Option<u32>,
    /// The target that selected it, or else the first one.
    target: Option<String>,
    log_importance_weight: Option<f64>,
    /// Where losses are read: its own, and the log of the weight that this gives it where losses add to weights.
    loss: Option<f64>,
    loss_weight: Option<f64>,
    cutoff_score: Option<f64>,
    importance: Option<f64>,
    stratum: Option<ExplainedStratum>,
    /// With `--against selected`.
    window: Option<ExplainedWindow>,
    /// With `--selector sensitivity`: mixed with the mean of all.
    sensitivity: Option<f64>,
    centre: Option<u32>,
    key: Option<f64>,
    /// The highest key that was not selected among those it competed with; `null` if all were selected.
    threshold: Option<f64>,
    inclusion_probability: Option<f64>,
    sample_weight: Option<f64>,
}

#[derive(Debug, Serialize)]
struct ExplainedStratum {
    /// From 0.
    number: usize,
    from: f64,
    to: f64,
    documents: u64,
    budget: u64,
}

/// Where a document competed against what was selected before: in the round that selected it, or in the last one.
#[derive(Debug, Serialize)]
struct ExplainedWindow {
    /// From 0.
    number: u32,
    /// From 1.
    round: u32,
    /// Documents of its pool, or of its stratum, in the window that were left to choose from, and as many as were chosen.
    documents: u64,
    budget: u64,
}

/// In the order of the input; ids that are not there stand at the end.
pub fn explain(looking: &Looking<'_>) -> anyhow::Result<Vec<Explanation>> {
    let wanted: HashSet<&str> = looking.plan.explain.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    looking.visit(
        |_| true,
        |_, chunk, document, record| {
            let id = chunk.id(record);
            wanted.contains(&*id).then(|| (document, id.into_owned(), record.source.map(str::to_owned)))
        },
        |document| found.extend(document),
    )?;
    let mut explanations: Vec<Explanation> =
        found.into_iter().map(|(document, id, source)| looking.explanation(document, id, source)).collect();
    let known: HashSet<String> = explanations.iter().map(|e| e.id.clone()).collect();
    explanations.extend(looking.plan.explain.iter().filter(|id| !known.contains(*id)).map(|id| Explanation {
        id: id.clone(),
        why: "no document has this id".to_owned(),
        ..Explanation::default()
    }));
    Ok(explanations)
}

/// One JSON object a line: of every document, in the order of the input.
pub fn write_decisions(looking: &Looking<'_>, folder: &Folder) -> anyhow::Result<()> {
    use std::io::Write as _;

    let mut file = folder.create(DECISIONS)?;
    let mut written = Ok(());
    looking.visit(
        |_| true,
        |_, chunk, document, record| {
            let (id, source) = (chunk.id(record).into_owned(), record.source.map(str::to_owned));
            serde_json::to_string(&looking.explanation(document, id, source))
        },
        |line| {
            if written.is_ok() {
                written = line.map_err(std::io::Error::from).and_then(|line| writeln!(file, "{line}"));
            }
        },
    )?;
    Ok(written.and_then(|()| file.flush()).map_err(|e| folder.failed(e))?)
}

impl Looking<'_> {
    fn explanation(&self, document: u32, id: String, source: Option<String>) -> Explanation {
        let Looking { model, scores, draw, plan, .. } = *self;
        let pick = draw.selection.picks.binary_search_by_key(&document, |pick| pick.document);
        let pick = pick.ok().map(|i| draw.selection.picks[i]);
        let target = pick.map_or(0, |pick| pick.target);
        let n_tokens = scores.n_tokens[document as usize];
        let mut of = Explanation {
            id,
            is_selected: pick.is_some(),
            document: Some(document),
            source,
            pool: scores.pool(document).checked_sub(1).map(|pool| plan.sources[pool].0.clone()),
            n_tokens: Some(n_tokens),
            target: Some(model.targets[target].name.clone()),
            log_importance_weight: Some(scores.weight(document, target)).filter(|weight| weight.is_finite()),
            loss: scores.loss(document),
            loss_weight: draw.settings.loss.map(|term| term.log_weight(scores.loss(document))),
            ..Explanation::default()
        };
        if !scores.is_long_enough(document, plan.min_tokens) {
            of.why = format!("it has {n_tokens} tokens, and at least {} are asked for", plan.min_tokens);
            return of;
        }
        if let Some(field) = plan.needed_fields().find(|&field| !scores.number(document, field).is_finite()) {
            of.why = format!("it has no number in field `{}`", plan.fields[field]);
            return of;
        }
        if self.is_cut(document, &mut of) {
            return of;
        }
        // Against what was selected: by the weight with which it last competed.
        of.key = Some(pick.map_or_else(|| draw.key(scores, model, document, target), |pick| pick.key));
        (of.window, of.threshold) = self.competition(document, target);
        of.why = in_words(&of);
        if draw.correction.is_none() || pick.is_some() {
            let probability = draw.inclusion_probability(scores, model, document);
            of.inclusion_probability = Some(probability);
            of.sample_weight = pick.map(|_| draw.sample_weight(scores, document, probability));
        }
        of
    }

    /// Whether the cut-off removed it, or it lacks an embedding; otherwise its stratum or its sensitivity.
    fn is_cut(&self, document: u32, of: &mut Explanation) -> bool {
        let Looking { model, scores, draw, plan, .. } = *self;
        match &draw.drawn {
            Drawn::Weights | Drawn::Tokens(_) => {}
            Drawn::Strata(strata) => {
                of.importance = Some(strata.importance(draw, scores, model, document));
                of.cutoff_score = strata.cutoff_score(draw, scores, model, document);
                let cutoff = strata.coverage.settings.cutoff;
                if let Some(cutoff) = cutoff.filter(|_| strata.covered.cut.binary_search(&document).is_ok()) {
                    of.why = format!(
                        "it is among the {} with the {} `{}`, which were cut off: {} is its own, {} that of the last",
                        strata.covered.cut.len(),
                        end(cutoff.tail),
                        name(plan, strata.coverage.cutoff),
                        of.cutoff_score.map(significant).unwrap_or_default(),
                        strata.covered.cut_at.map(significant).unwrap_or_default(),
                    );
                    return true;
                }
                of.stratum = self.stratum(document);
            }
            Drawn::Sensitivities(sensitivities) => {
                if let Some(why) = sensitivities.why_not(document, plan) {
                    of.why = why;
                    return true;
                }
                of.sensitivity = Some(sensitivities.score(document));
                of.centre = Some(sensitivities.centre(document));
            }
        }
        false
    }

    fn stratum(&self, document: u32) -> Option<ExplainedStratum> {
        let Drawn::Strata(strata) = &self.draw.drawn else { return None };
        let cell = strata.cell(self.draw, self.scores, self.model, document)?;
        let pool = &strata.covered.pools[self.scores.pool(document)];
        let (edges, number) = (pool.edges?, cell % pool.strata.len());
        let ((from, to), stratum) = (edges.bounds(number), pool.strata[number]);
        Some(ExplainedStratum { number, from, to, documents: stratum.documents, budget: stratum.budget })
    }

    /// The window it competed in, if there are windows, and the threshold.
    fn competition(&self, document: u32, target: usize) -> (Option<ExplainedWindow>, Option<f64>) {
        let Looking { model, scores, draw, .. } = *self;
        let pool = scores.pool(document);
        let (turns, cell) = match &draw.drawn {
            Drawn::Weights | Drawn::Tokens(_) => (&draw.selection.turns, pool),
            Drawn::Strata(s) => match s.cell(draw, scores, model, document) {
                Some(cell) => (&s.covered.selection.turns, cell),
                None => return (None, None),
            },
            Drawn::Sensitivities(s) => (&s.drawn.selection.turns, pool),
        };
        let Some(windows) = &draw.windows else {
            let turn = turns.iter().find(|turn| turn.pool == cell && turn.target == target);
            return (None, turn.and_then(|turn| turn.threshold));
        };
        let pick = draw.selection.picks.binary_search_by_key(&document, |pick| pick.document);
        let round = pick.ok().map(|pick| windows.rounds_of_picks[pick]);
        let Some(turn) = windows.turn(document, cell, target, round) else { return (None, None) };
        let (documents, budget) = (turn.documents, turn.turn.count);
        (Some(ExplainedWindow { number: turn.window, round: turn.round, documents, budget }), turn.turn.threshold)
    }
}

fn in_words(of: &Explanation) -> String {
    let mut text = String::new();
    if let Some(stratum) = &of.stratum {
        // Writing to memory does not fail.
        let _ = write!(
            text,
            "its stratum, from {} to {}, has {} documents and a budget of {}; ",
            significant(stratum.from),
            significant(stratum.to),
            stratum.documents,
            stratum.budget
        );
    }
    if let Some(ExplainedWindow { number, documents, budget, .. }) = &of.window {
        let _ = write!(text, "in window {number} {budget} of {documents} were to be selected; ");
    }
    let key = of.key.map(significant).unwrap_or_default();
    let _ = match of.threshold.map(significant) {
        Some(threshold) if of.is_selected => {
            write!(text, "its key {key} is above {threshold}, the best that was not selected")
        }
        Some(threshold) => write!(text, "its key {key} is not above {threshold}, the best that was not selected"),
        None if of.is_selected => write!(text, "all that it competed with were selected"),
        None => write!(text, "nothing was to be selected of those it competed with"),
    };
    text
}

/// A list for the terminal.
pub fn add_text(explanations: &[Explanation], text: &mut String) {
    if !explanations.is_empty() {
        text.push_str("\nWhy\n");
    }
    for Explanation { id, is_selected, why, .. } in explanations {
        let outcome = if *is_selected { "selected" } else { "not selected" };
        let _ = writeln!(text, "  {id}: {outcome}: {why}");
    }
}
