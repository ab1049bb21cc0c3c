//! Sources that cannot give what their shares ask for: misspelt ones, and those with too few documents.

use super::SelectionPlan;
use super::draw::{self, Draw, Drawn};
use super::scores::Scores;
use super::tokens::TokenPools;
use crate::select::{Rounding, apportion};

/// One for each such source, and for all that have no share of their own.
pub fn warnings(scores: &Scores, plan: &SelectionPlan, draw: &Draw) -> Vec<String> {
    // Otherwise what is missing is missing of the whole selection, which is said of that.
    if plan.sources.is_empty() {
        return Vec::new();
    }
    match &draw.drawn {
        Drawn::Tokens(pools) => in_tokens(plan, pools),
        Drawn::Weights | Drawn::Strata(_) | Drawn::Sensitivities(_) => in_documents(scores, plan, draw),
    }
}

fn name(plan: &SelectionPlan, pool: usize) -> String {
    match pool.checked_sub(1) {
        None => "all other sources".to_owned(),
        Some(source) => format!("source `{}`", plan.sources[source].0),
    }
}

fn in_documents(scores: &Scores, plan: &SelectionPlan, draw: &Draw) -> Vec<String> {
    let shares = draw::pool_shares(plan);
    let cut = match &draw.drawn {
        Drawn::Strata(strata) => &strata.covered.cut[..],
        Drawn::Weights | Drawn::Sensitivities(_) | Drawn::Tokens(_) => &[],
    };
    let (mut documents, mut selectable) = (vec![0u64; shares.len()], vec![0u64; shares.len()]);
    for document in 0..scores.len() as u32 {
        let pool = scores.pool(document);
        documents[pool] += 1;
        let may_be_selected = scores.is_candidate(document, plan) && cut.binary_search(&document).is_err();
        selectable[pool] += u64::from(may_be_selected);
    }
    // A bad line has no source.
    documents[0] -= scores.bad_lines;
    // As if there were enough of every source.
    let asked = apportion(draw.requested, &shares, &vec![draw.requested; shares.len()], Rounding::Nearest);
    let of_pool = |(pool, asked): (usize, u64)| {
        let (selectable, documents) = (selectable[pool], documents[pool]);
        (asked > selectable).then(|| {
            let name = name(plan, pool);
            format!("{name}: {asked} were asked for, {selectable} of {documents} could be selected")
        })
    };
    asked.into_iter().enumerate().filter_map(of_pool).collect()
}

fn in_tokens(plan: &SelectionPlan, pools: &TokenPools) -> Vec<String> {
    let of_pool = |(pool, share): (usize, f64)| {
        let (asked, available) = (share * pools.requested, pools.pools[pool].available());
        (asked > available as f64).then(|| {
            let name = name(plan, pool);
            format!("{name}: {asked:.0} tokens were asked for, {available} could be selected")
        })
    };
    draw::pool_shares(plan).into_iter().enumerate().filter_map(of_pool).collect()
}
