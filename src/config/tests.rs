use super::*;
use crate::features::Featuriser;
use crate::record::{Base64Floats, EmbeddingField};
use crate::score::{LossStrategy, LossTerm, Model, NgramCounts, Side, Target};
use crate::select::{
    CentresFrom, CoverageSelector, CoverageSettings, Criterion, EdgesFrom, LossSource, SensitivitySelector,
    StrataRounding, Tail, Within,
};

fn load(toml: &str) -> Result<Config, ConfigErrors> {
    Config::from_toml(toml, [])
}

fn mistakes(toml: &str) -> Vec<String> {
    load(toml).err().map(|e| e.0).unwrap_or_default()
}

#[test]
fn defaults_are_valid_and_say_what_the_docs_say() {
    let config = load("").unwrap();
    assert_eq!(config.kafka.bootstrap, Bootstrap::Servers("localhost:9092".into()));
    assert_eq!(config.kafka.group, "winnowd-default");
    assert_eq!(config.selector.min_tokens, 100);
    assert_eq!(config.selector.fraction.of(1000, 0.5), 100);
    assert_eq!(config.window.max_age_ms, 600_000);
    assert!(config.sink.url.path().ends_with("/winnowd-data/"));
    assert_eq!((config.raw, config.selector.length_normalise), (RawDistribution::Pinned, false));
}

#[test]
fn weighing_against_what_was_selected_has_its_own_settings() {
    let config = load("[model]\nagainst = \"selected\"\nselected_share = 0.5\nselected_half_life_ngrams = 7").unwrap();
    let (share, prior_ngrams, history_bytes) = (0.5, 300_000, 128 << 20);
    let expected = Against::Selected { share, prior_ngrams, half_life_ngrams: Some(7), history_bytes };
    assert_eq!(config.against, expected);
    let config = load("[model]\nagainst = \"selected\"").unwrap();
    let expected = Against::Selected { share: 1.0, prior_ngrams, half_life_ngrams: None, history_bytes };
    assert_eq!(config.against, expected);
    assert_eq!(load("").unwrap().against, Against::Raw);
}

#[test]
fn quotas_are_read_by_name() {
    let config = load("[selection.sources]\nweb = 0.5\n\"Books.v2\" = 0.1\n[selection.proportions]\ncode = 1").unwrap();
    let quotas = config.selector.quotas;
    assert_eq!(
        quotas.sources.iter().map(|(name, share)| (name.as_str(), *share)).collect::<Vec<_>>(),
        [("Books.v2", 0.1), ("web", 0.5)]
    );
    assert_eq!(quotas.proportions["code"], 1.0);
    assert!(load("").unwrap().selector.quotas.is_empty() && quotas.field.is_none());
}

#[test]
fn quotas_can_be_of_another_field_than_the_source() {
    let field = |toml: &str| load(&format!("selection.sources.de = 0.5\n{toml}")).unwrap().selector.quotas.field;
    assert_eq!(field("selection.quota_field = \"language\""), Some("language".to_owned()));
    // What is called so is another field then.
    assert_eq!(
        field("selection.quota_field = \"source\"\ndocuments.source_field = \"url\""),
        Some("source".to_owned())
    );
    assert_eq!(field("selection.quota_field = \"source\""), None);
    let text = "documents.format = \"text\"\ndocuments.text.headers = [\"id\"]\nselection.quota_field";
    assert_eq!(field(&format!("{text} = \"id\"")), Some("id".to_owned()));
    let found = mistakes(&format!("selection.sources.de = 0.5\n{text} = \"language\""));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("`selection.quota_field` = `language`: is none of documents.text.headers"),
        "{found:?}"
    );
    let mixing = "feedback.topic = \"l\"\nselection.mixing = \"odm\"\nselection.quota_field = \"language\"";
    let expected =
        "`selection.quota_field` = `language`: has no effect with selection.mixing, which learns shares of sources";
    assert_eq!(mistakes(mixing), [expected]);
    let losses = "documents.loss_field = \"loss\"\nselection.sources.a = 0.5\nselection.quota_field = \"loss\"";
    assert_eq!(
        mistakes(losses),
        ["`selection.quota_field` = `loss`: is no field to be divided by: [documents] says what it is"]
    );
}

/// Names are only known with the model: mistakes in them are told with all others all the same.
#[test]
fn proportions_of_unknown_targets_are_told_with_all_other_mistakes() {
    let side = || Side::of(NgramCounts::from_vec(vec![1, 1]));
    let featuriser = Featuriser { buckets: 2, ..Featuriser::default() };
    let one = Model::of_one_target(featuriser, side(), side()).unwrap();
    let target = |name: &str| Target { name: name.into(), proportion: 0.5, side: side() };
    let two = Model { targets: vec![target("code"), target("math")], ..one.clone() };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, model: &Model| {
        let path = folder.path().join(name);
        std::fs::write(&path, model.to_bytes()).unwrap();
        path.display().to_string()
    };
    let (one, two) = (path("one", &one), path("two", &two));
    let found = |model: &str, proportions: &str| {
        mistakes(&format!(
            "[model]\npath = \"{model}\"\n[selection]\nfraction = 2\n[selection.proportions]\n{proportions}"
        ))
    };
    for (model, proportions, expected) in [
        (
            &two,
            "code = 0.7\nmaths = 0.3",
            "`selection.proportions.maths` = `0.3`: no target of the model has this name; it has `code`, `math`",
        ),
        (&two, "code = 0.7", "`selection.proportions` = `code = 0.7`: target `math` has none"),
        (&two, "code = 0.7\nmath = 0.2", "`selection.proportions` = `code = 0.7, math = 0.2`: the shares sum to 0.8"),
        (&two, "code = 0.7\nmath = \"x\"", "`selection.proportions.math` = `x`: expected a number above 0"),
        (&one, "code = 1", "`selection.proportions` = `code = 1`: the model has one target"),
    ] {
        let found = found(model, proportions);
        assert!(found.iter().any(|m| m.contains(expected)), "{proportions:?} gives {found:#?}, expected `{expected}`");
        assert!(found.iter().any(|m| m.contains("`selection.fraction`")), "with the others: {found:#?}");
    }
    assert_eq!(found(&two, "code = 0.7\nmath = 0.3").len(), 1);
}

#[test]
fn weights_from_losses_are_the_published_ones_by_default() {
    let config = load("").unwrap();
    assert_eq!(config.loss_weight.settings, LossWeightSettings::default());
    assert_eq!((config.losses.topic, config.losses.weights_topic, config.http.token), (None, None, None));
    let config = load(
        "[loss_weight]\nstrategy = \"cvar\"\ncvar_share = 0.25\ncap = 0\ntemperature_half_life_steps = 7\nrange = \"min_max\"\nnon_finite = \"zero\"",
    );
    let expected = r#"{"strategy":{"cvar":{"share":0.25}},"temperature":{"burn_in_steps":1000,"initial":1.0,"decay":{"half_life_steps":7,"floor":0.4}},"range":"min_max","cap":null,"non_finite":"zero"}"#;
    assert_eq!(serde_json::to_string(&config.unwrap().loss_weight.settings).unwrap(), expected);
    assert_eq!(load("[selection]\nloss_low = 3").unwrap().selector.loss, None);
    let config = load(
        "[documents]\nloss_field = \"nll\"\n[selection]\nloss_coefficient = -0.5\nloss_low = 1\nloss_high = 4.5\nloss_strategy = \"extremes\"",
    );
    let (low, high) = (1.0, 4.5);
    let term = LossTerm { coefficient: -0.5, strategy: LossStrategy::Extremes, low, high };
    assert_eq!(config.unwrap().selector.loss, Some(term));
    // As `WINNOWD_HTTP__TOKEN=… winnowd run` does.
    let environment = [("WINNOWD_HTTP__TOKEN".to_owned(), "hunter2-hunter2-hunter2".to_owned())];
    let config = Config::from_toml("", environment).unwrap();
    assert_eq!(config.http.token.as_ref().unwrap().reveal(), "hunter2-hunter2-hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn feedback_has_its_own_settings_and_needs_its_topic() {
    assert!(load("").unwrap().feedback.is_none());
    let toml = "[feedback]\ntopic = \"losses\"\nngrams = 64\n[selection]\nmixing = \"odm_exp3\"\nexpected_loss = -0.5";
    let feedback = load(toml).unwrap().feedback.unwrap();
    assert_eq!((feedback.topic.as_str(), feedback.ngrams, feedback.coefficient), ("losses", 64, -0.5));
    let mixing = Some(crate::feedback::Mixing::Odm(crate::feedback::OdmPolicy::Exp3));
    let expected = FeedbackSettings { half_life: 20_000.0, mixing, floor: 0.01 };
    assert_eq!((feedback.settings, feedback.max_documents), (expected, 1_000_000));
    let found = mistakes("[selection]\nmixing = \"ado\"\nmixing_floor = 1\nexpected_loss = 2");
    assert_eq!(
        found,
        [
            "`selection.mixing_floor` = `1`: expected a number from 0 to below 1",
            "`selection.mixing` = `ado`: needs feedback.topic",
            "`selection.expected_loss` = `2`: needs feedback.topic",
        ]
    );
    let found = mistakes("feedback.topic = \"l\"\n[selection]\nmixing = \"odm\"\n[selection.sources]\nweb = 0.5");
    assert_eq!(found, ["`selection.mixing` = `odm`: shares of sources are given by selection.sources already"]);
    let found = mistakes("feedback.topic = \"documents\"");
    assert_eq!(found, ["`feedback.topic` = `documents`: is also a topic of documents or of dead letters"]);
}

#[test]
fn an_adaptive_raw_distribution_has_its_own_settings() {
    let config =
        load("[model]\nraw = \"adaptive\"\nraw_half_life_ngrams = 5000\nraw_history_bytes = \"1MiB\"").unwrap();
    let expected =
        RawDistribution::Adaptive { half_life_ngrams: 5000, prior_ngrams: 100_000_000, history_bytes: 1 << 20 };
    assert_eq!(config.raw, expected);
}

#[test]
fn a_file_overrides_the_defaults_and_the_environment_the_file() {
    let file = "[selection]\nfraction = 0.25\nseed = 7\n[kafka]\ntopics = [\"a\", \"b\"]\n[kafka.properties]\n\"fetch.wait.max.ms\" = 100";
    let environment = [
        ("WINNOWD_SELECTION__SEED", "8"),
        ("WINNOWD_KAFKA__TOPICS", "x, y"),
        ("WINNOWD_KAFKA__SESSION_TIMEOUT", "10s"),
        ("OTHER__VARIABLE", "ignored"),
        ("WINNOWD_SERVICE_HOST", "10.0.0.1"),
        ("WINNOWD_PORT_9464_TCP_ADDR", "10.0.0.1"),
    ];
    let config = Config::from_toml(file, environment.map(|(k, v)| (k.to_owned(), v.to_owned()))).unwrap();
    assert_eq!(config.selector.fraction.to_string(), "0.25");
    assert_eq!(config.selector.seed, 8);
    assert_eq!(config.kafka.topics, ["x", "y"]);
    assert_eq!(config.kafka.session_timeout, Duration::from_secs(10));
    assert_eq!(config.kafka.properties["fetch.wait.max.ms"].reveal(), "100");
}

/// (section and line, what the message must say)
const MISTAKES: &[(&str, &str)] = &[
    ("[kafka]\nbootstrap = \"broker\"", "`kafka.bootstrap` = `broker`: `broker` is no host:port"),
    ("[kafka]\nbootstrap = \"a:9092,b:x\"", "`b:x` is no host:port"),
    ("[kafka]\ntopics = []", "`kafka.topics` = `[]`: name at least one topic"),
    ("[kafka]\ntopics = [\"a*\"]", "`kafka.topics` = `a*`: no valid topic name"),
    ("[kafka]\ntopics = [\"a\", \"a\"]", "`kafka.topics` = `a`: named twice"),
    ("[kafka]\nstart = \"begin\"", "`kafka.start` = `begin`: expected earliest, latest or a time"),
    ("[kafka]\non_lost_offset = \"jump\"", "`kafka.on_lost_offset` = `jump`: expected one of: error, skip"),
    ("[kafka]\nsecurity_protocol = \"tls\"", "`kafka.security_protocol` = `tls`: expected one of: plaintext, ssl"),
    ("[kafka]\nsecurity_protocol = \"sasl_ssl\"", "`kafka.sasl_password` = ``: must be set"),
    (
        "[kafka]\nsasl_username = \"me\"",
        "`kafka.sasl_username` = `me`: has no effect with kafka.security_protocol = plaintext",
    ),
    ("[kafka]\nssl_ca_location = \"/no/such.pem\"", "`kafka.ssl_ca_location` = `/no/such.pem`: no such file"),
    (
        "[kafka]\nsession_timeout = \"1h\"",
        "`kafka.max_poll_interval` = `5m`: must be at least kafka.session_timeout (1h)",
    ),
    ("[kafka]\ndrain_timeout = \"4m\"", "`kafka.drain_timeout` = `4m`: must be at most half"),
    (
        "[kafka.properties]\n\"auto.offset.reset\" = \"latest\"",
        "`kafka.properties.auto.offset.reset` = `latest`: cannot be set",
    ),
    (
        "[kafka.properties]\n\"fetch.wait.max.ms\" = 60000",
        "`kafka.properties.fetch.wait.max.ms` = `60000`: must be at most 4000",
    ),
    ("[kafka]\nbotstrap = \"a:1\"", "`kafka.botstrap` = `a:1`: unknown key, did you mean `kafka.bootstrap`?"),
    ("[pipeline]\nname = \"../x\"", "`pipeline.name` = `../x`: expected 1 to 100 letters"),
    ("[documents]\ntext_field = \"\"", "`documents.text_field` = ``: must be set"),
    ("[documents]\nid_field = \"text\"", "`documents.id_field` = `text`: the same field as documents.text_field"),
    (
        "[documents]\nmax_bytes = \"1GiB\"",
        "`documents.max_bytes` = `1.0 GiB`: must be at most an eighth of memory.budget",
    ),
    (
        "[selection]\nselector = \"best\"",
        "`selection.selector` = `best`: expected one of: importance_resampling, top_k, coverage, sensitivity",
    ),
    (
        "[selection]\nembedding_field = \"e\"",
        "`selection.embedding_field` = `e`: has no effect without selection.selector",
    ),
    (
        "[selection]\nselector = \"sensitivity\"\nembedding_field = \"text\"",
        "`selection.embedding_field` = `text`: is no field of embeddings",
    ),
    ("[selection]\nembedding_base64 = \"f64\"", "`selection.embedding_base64` = `f64`: expected one of: f16, f32"),
    ("[selection]\ncentres = 0", "`selection.centres` = `0`: expected an integer from 1"),
    ("[selection]\ndistance_power = 3", "`selection.distance_power` = `3`: expected an integer from 1 to 2"),
    ("[selection]\nfloor = 0", "`selection.floor` = `0`: expected a number above 0 and up to 1"),
    (
        "[documents]\nloss_field = \"l\"\n[selection]\nselector = \"sensitivity\"\nloss_coefficient = 1\nloss_high = 5",
        "`selection.loss_coefficient` = `1`: has no effect with selection.selector = sensitivity",
    ),
    (
        "[model]\nagainst = \"selected\"\n[selection]\nselector = \"sensitivity\"",
        "`model.against` = `selected`: has no effect with selection.selector = sensitivity",
    ),
    (
        "[feedback]\ntopic = \"losses\"\n[selection]\nselector = \"sensitivity\"\nexpected_loss = 2",
        "`selection.expected_loss` = `2`: has no effect with selection.selector = sensitivity",
    ),
    (
        "[selection]\nselector = \"sensitivity\"\nembedding_field = \"e\"\n[window]\nmax_bytes = \"3GiB\"",
        "`spool.max_bytes` = `16.0 GiB`: must be at least 20.1 GiB: twice what a window takes (9.0 GiB",
    ),
    ("[selection]\nselector = \"coverage\"", "`selection.importance` = ``: must name a field that says how hard"),
    ("[selection]\nimportance = \"loss\"", "`selection.importance` = `loss`: has no effect without selection.selector"),
    ("[selection]\ncutoff = 0.1", "`selection.cutoff` = `0.1`: has no effect without selection.selector = coverage"),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"text\"",
        "`selection.importance` = `text`: is no field of numbers",
    ),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\ncutoff_field = \"m\"",
        "`selection.cutoff_field` = `m`: has no effect without selection.cutoff",
    ),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\ncutoff_tail = \"low\"",
        "`selection.cutoff_tail` = `low`: has no effect without selection.cutoff",
    ),
    (
        "[selection]\ncutoff_tail = \"low\"",
        "`selection.cutoff_tail` = `low`: has no effect without selection.selector = coverage",
    ),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\nfraction = 0.5\ncutoff = 0.6",
        "`selection.cutoff` = `0.6`: leaves 0.4 of the documents, and selection.fraction = 0.5 is to be selected",
    ),
    ("[selection]\ncutoff = 1", "`selection.cutoff` = `1`: expected a decimal from 0 to below 1"),
    (
        "[documents]\nloss_field = \"l\"\n[selection]\nselector = \"coverage\"\nimportance = \"l2\"\nwithin = \"uniform\"\n\
         loss_coefficient = 1\nloss_high = 5",
        "`selection.loss_coefficient` = `1`: has no effect with selection.within = uniform, which draws all of a stratum alike",
    ),
    (
        "[model]\nagainst = \"selected\"\n[selection]\nselector = \"coverage\"\nimportance = \"l\"\nwithin = \"uniform\"",
        "`model.against` = `selected`: has no effect with selection.within = uniform",
    ),
    (
        "[feedback]\ntopic = \"losses\"\n[selection]\nselector = \"coverage\"\nimportance = \"l\"\nwithin = \"uniform\"\nexpected_loss = 2",
        "`selection.expected_loss` = `2`: has no effect with selection.within = uniform",
    ),
    // Without a rate there is no cut-off.
    (
        "[model]\nagainst = \"selected\"\n[selection]\nselector = \"coverage\"\nimportance = \"l\"\nwithin = \"uniform\"\n\
         cutoff_field = \"weight\"",
        "`model.against` = `selected`: has no effect with selection.within = uniform",
    ),
    ("[selection]\nclip = 0.5", "`selection.clip` = `0.5`: expected a number from 0 to below 0.5"),
    ("[selection]\nstrata = 0", "`selection.strata` = `0`: expected an integer from 1"),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\nstrata = 6000\n[selection.sources]\nweb = 0.5",
        "`selection.strata` = `6000`: with 2 pools by [selection.sources] or selection.mixing there are 12000 strata",
    ),
    (
        "[feedback]\ntopic = \"losses\"\n[selection]\nselector = \"coverage\"\nimportance = \"l\"\nmixing = \"ado\"\nstrata = 10000",
        "`selection.strata` = `10000`: with 33 pools by [selection.sources] or selection.mixing there are 330000 strata",
    ),
    (
        "[selection]\nedges_from = \"stream\"",
        "`selection.edges_from` = `stream`: has no effect without selection.selector = coverage",
    ),
    ("[selection]\nedges_from = \"file\"", "`selection.edges_from` = `file`: expected one of: window, stream"),
    (
        "[selection]\nedges_half_life_documents = 9999",
        "`selection.edges_half_life_documents` = `9999`: expected an integer from 10000",
    ),
    (
        "[selection]\ncentres_from = \"stream\"",
        "`selection.centres_from` = `stream`: has no effect without selection.selector = sensitivity",
    ),
    (
        "[selection]\nselector = \"sensitivity\"\ncentres_from = \"stream\"\ncentres = 5000",
        "`selection.centres` = `5000`: must be at most 4096 with selection.centres_from = stream",
    ),
    (
        "[selection]\nselector = \"sensitivity\"\ncentres_from = \"stream\"\n[window]\nmax_documents = 255",
        "`window.max_documents` = `255`: must be at least selection.centres (256) with selection.centres_from = stream",
    ),
    ("[spool]\ncompression = \"lz4\"", "`spool.compression` = `lz4`: expected one of: zstd, none"),
    ("[spool]\nfolder = \"/no/such\"", "`spool.folder` = `/no/such`: is not a folder"),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\n[window]\nmax_bytes = \"10GiB\"",
        "`spool.max_bytes` = `16.0 GiB`: must be at least 22.3 GiB: twice what a window takes (10.0 GiB",
    ),
    (
        "[selection]\nselector = \"coverage\"\nimportance = \"l\"\nfraction = 0.9\n[window]\nmax_bytes = \"10GiB\"",
        "`spool.max_bytes` = `16.0 GiB`: must be at least 38.3 GiB: twice what a window takes (10.0 GiB, see window.max_bytes) and what is \
         selected of it (9.0 GiB)",
    ),
    ("[selection]\nfraction = 1.5", "`selection.fraction` = `1.5`: expected a decimal above 0 and at most 1"),
    ("[selection]\nfraction = 0", "`selection.fraction` = `0`: expected a decimal above 0"),
    ("[selection]\ntemperature = 0.0", "`selection.temperature` = `0`: expected a number above 0"),
    ("[selection]\ntemperature = nan", "`selection.temperature` = `NaN`: expected a number above 0"),
    (
        "[selection]\nloss_coefficient = 1.0\nloss_high = 5",
        "`selection.loss_coefficient` = `1`: has no effect without documents.loss_field",
    ),
    (
        "[documents]\nloss_field = \"loss\"\n[selection]\nloss_coefficient = 1.0",
        "`selection.loss_high` = `0`: must be above the low loss (0)",
    ),
    (
        "[selection]\nloss_strategy = \"cvar\"",
        "`selection.loss_strategy` = `cvar`: expected one of: lin_upper, quadratic",
    ),
    ("[selection]\nloss_coefficient = \"much\"", "`selection.loss_coefficient` = `much`: expected a number"),
    ("[documents]\nloss_field = \"id\"", "`documents.loss_field` = `id`: the same field as documents.id_field"),
    (
        "[documents]\nreference_loss_field = \"r\"",
        "`documents.reference_loss_field` = `r`: has no effect without documents.loss_field",
    ),
    ("[selection]\nmin_tokens = -1", "`selection.min_tokens` = `-1`: expected an integer from 0"),
    ("[selection]\nlength_normalise = 2", "`selection.length_normalise` = `2`: expected true or false"),
    (
        "[selection.sources]\nweb = 0.7\nbooks = 0.4",
        "`selection.sources` = `books = 0.4, web = 0.7`: the shares sum to 1.1",
    ),
    (
        "[selection]\nquota_field = \"language\"",
        "`selection.quota_field` = `language`: has no effect without shares of its values in [selection.sources]",
    ),
    (
        "[selection]\nquota_field = \"text\"\n[selection.sources]\nweb = 0.5",
        "`selection.quota_field` = `text`: is no field to be divided by",
    ),
    ("[selection.sources]\nweb = 0", "`selection.sources.web` = `0`: the share must be above 0"),
    ("[selection.sources]\nweb = \"half\"", "`selection.sources.web` = `half`: expected a number above 0"),
    ("[model]\nraw = \"live\"", "`model.raw` = `live`: expected one of: pinned, adaptive"),
    ("[model]\nagainst = \"both\"", "`model.against` = `both`: expected one of: raw, selected"),
    ("[model]\nselected_share = 0", "`model.selected_share` = `0`: expected a number above 0 and up to 1"),
    ("[model]\nraw_half_life_ngrams = 0", "`model.raw_half_life_ngrams` = `0`: expected an integer from 1"),
    ("[model]\nraw_prior_ngrams = 0.5", "`model.raw_prior_ngrams` = `0.5`: expected an integer from 1"),
    ("[window]\nmax_documents = 0", "`window.max_documents` = `0`: expected an integer from 1"),
    ("[window]\nmax_age = \"soon\"", "`window.max_age` = `soon`: expected a duration such as 30s"),
    ("[window]\nmax_bytes = \"big\"", "`window.max_bytes` = `big`: expected a size such as 64MiB"),
    ("[shard]\nrow_group_rows = 100000", "`shard.row_group_rows` = `100000`: expected an integer from 1024 to 8192"),
    ("[shard]\nrow_group_bytes = \"1GiB\"", "`shard.row_group_bytes` = `1GiB`: must be from 1.0 MiB to 64.0 MiB"),
    ("[sink]\nurl = \"ftp://host/x\"", "`sink.url` = `ftp://host/x`: scheme `ftp` is not supported"),
    ("[sink]\nurl = \"s3:///prefix\"", "`sink.url` = `s3:///prefix`: expected s3://BUCKET/PREFIX"),
    (
        "[sink]\nurl = \"s3://bucket\"\n[sink.options]\naws_secret_key = \"hunter2\"",
        "`sink.options.aws_secret_key` = `***`: is no setting of a s3:// store",
    ),
    ("[sink.options]\naws_region = \"x\"", "`sink.options.aws_region` = `x`: is no setting of a file:// store"),
    ("[sink]\nscratch_dir = \"/no/such\"", "`sink.scratch_dir` = `/no/such`: is not a folder"),
    ("[catalog]\nurl = \"mysql://x\"", "`catalog.url` = `mysql://x`: scheme `mysql` is not supported"),
    (
        "[catalog]\nurl = \"postgres://me:hunter2@host:x/db\"",
        "`catalog.url` = `postgres://***@host:x/db`: invalid port number",
    ),
    (
        "[catalog]\nurl = \"postgres://host\"",
        "names no database; expected sqlite://FILE or postgres://USER@HOST/DATABASE",
    ),
    ("[catalog]\npassword = \"hunter2\"", "`catalog.password` = `***`: a SQLite file has no password"),
    ("[memory]\nbudget = \"1MiB\"", "`memory.budget` = `1MiB`: must be from 64.0 MiB"),
    ("[http]\nlisten = \"9464\"", "`http.listen` = `9464`: expected an address and port"),
    ("[http]\ntoken = \"hunter2\"", "`http.token` = `***`: expected at least 16 characters of printable ASCII"),
    ("[http]\ntoken = \"hunter2 and a good deal more\"", "`http.token` = `***`: expected at least 16 characters"),
    ("[http]\ntokn = \"hunter2\"", "`http.tokn` = `***`: unknown key, did you mean `http.token`?"),
    ("[loss_weight]\nstrategy = \"upper\"", "`loss_weight.strategy` = `upper`: expected one of: uniform, lin_upper"),
    ("[loss_weight]\ntemperature = 0", "`loss_weight.temperature` = `0`: expected a number above 0"),
    ("[loss_weight]\ntemperature = \"hot\"", "`loss_weight.temperature` = `hot`: expected a number"),
    (
        "[loss_weight]\ntemperature = 0.3\ntemperature_half_life_steps = 10",
        "`loss_weight.temperature_floor` = `0.4`: is above loss_weight.temperature (0.3)",
    ),
    ("[loss_weight]\nrange_tail = 0.5", "`loss_weight.range_tail` = `0.5`: expected a number from 0 to 0.25"),
    ("[loss_weight]\nrange = \"all\"", "`loss_weight.range` = `all`: expected one of: quantiles, min_max"),
    ("[loss_weight]\ncap = 0.5", "`loss_weight.cap` = `0.5`: expected a number of at least 1"),
    (
        "[loss_weight]\nstrategy = \"cvar\"\ncvar_share = 0.1",
        "`loss_weight.cap` = `2`: cvar gives its worst samples up to 10 times the mean (1 / share)",
    ),
    (
        "[loss_weight]\nstrategy = \"cvar\"\ncvar_share = 0\ncap = 0",
        "`loss_weight.cvar_share` = `0`: expected a number above 0",
    ),
    ("[loss_weight]\nnon_finite = \"drop\"", "`loss_weight.non_finite` = `drop`: expected one of: error, uniform"),
    ("[loss_weight]\nremembered_steps = 0", "`loss_weight.remembered_steps` = `0`: expected an integer from 1"),
    ("[losses]\ntopic = \"documents\"", "`losses.topic` = `documents`: is one of kafka.topics"),
    ("[losses]\nweights_topic = \"w\"", "`losses.weights_topic` = `w`: has no effect without losses.topic"),
    ("[losses]\ntopic = \"l\"\nweights_topic = \"l\"", "`losses.weights_topic` = `l`: is losses.topic"),
    ("[losses]\ndeadline = \"0s\"", "`losses.deadline` = `0s`: must be from 10ms"),
    ("[losses]\npending = \"1GiB\"", "`losses.pending` = `1.0 GiB`: must be at most memory.budget (512.0 MiB)"),
    ("[losses]\nmax_samples = 0", "`losses.max_samples` = `0`: expected an integer from 1"),
    ("[log]\nlevel = \"loud\"", "`log.level` = `loud`: expected one of"),
    ("[catalog]\nmigrate = \"perhaps\"", "`catalog.migrate` = `perhaps`: expected true or false"),
    ("[nonsense]\nx = 1", "`nonsense.x` = `1`: unknown key"),
    ("sasl_password = \"hunter2\"", "`sasl_password` = `***`: unknown key"),
    (
        "[kafka]\nsasl_pasword = \"hunter2\"",
        "`kafka.sasl_pasword` = `***`: unknown key, did you mean `kafka.sasl_password`?",
    ),
    (
        "[kafka]\nsasl_password = \"hunter2",
        "the file is not valid TOML: TOML parse error at line 2, column 25: invalid basic string",
    ),
    ("[kafka", "the file is not valid TOML"),
    (
        "[sink]\nurl = \"file://data/out\"",
        "`sink.url` = `file://data/out`: names the host `data`; a path on this machine has three slashes",
    ),
];

#[test]
fn every_mistake_names_key_and_value() {
    for (toml, expected) in MISTAKES {
        let found = mistakes(toml);
        assert!(found.iter().any(|m| m.contains(expected)), "{toml:?} gives {found:#?}, expected `{expected}`");
        assert!(found.iter().all(|m| !m.contains("hunter2")));
    }
}

/// To the byte, and in two halves: beyond the first one partition goes on alone.
#[test]
fn the_disk_has_room_for_a_window_and_what_is_selected_of_it() {
    let waiting_bytes = (1u64 << 30) + 10_000 * 144;
    for (fraction, selected_bytes) in [("1", waiting_bytes), ("0.9", (waiting_bytes * 9).div_ceil(10))] {
        let reserve_bytes = waiting_bytes + selected_bytes + (128 << 20);
        let toml = |max_bytes: u64| {
            format!(
                "[selection]\nselector = \"coverage\"\nimportance = \"l\"\nfraction = {fraction}\n[window]\nmax_bytes = \"1GiB\"\n\
                 [spool]\nmax_bytes = \"{max_bytes}B\""
            )
        };
        let spool = load(&toml(2 * reserve_bytes)).unwrap().spool;
        assert_eq!((spool.max_bytes, spool.reserve_bytes), (2 * reserve_bytes, reserve_bytes));
        let found = mistakes(&toml(2 * reserve_bytes - 1));
        assert!(matches!(&found[..], [only] if only.contains("`spool.max_bytes`")), "{found:?}");
    }
}

/// By which strata or the cut-off are made, whoever is drawn from them.
#[test]
fn weights_may_decide_about_strata_that_are_drawn_from_uniformly() {
    let against = "[model]\nagainst = \"selected\"\n[selection]\nselector = \"coverage\"\n";
    for by in [
        "importance = \"l\"",
        "within = \"uniform\"\nimportance = \"weight\"",
        "within = \"uniform\"\nimportance = \"l\"\ncutoff = 0.2\ncutoff_field = \"weight\"",
    ] {
        assert_eq!(mistakes(&format!("{against}{by}")), Vec::<String>::new(), "{by}");
    }
}

/// A window that gives all that the cut-off leaves is no mistake, and neither is one of the stream that may give less.
#[test]
fn what_strata_cannot_give_is_told() {
    let warnings = |more: &str| {
        let toml = format!("[selection]\nselector = \"coverage\"\nimportance = \"l\"\n{more}");
        load(&toml).unwrap().coverage_warnings()
    };
    let none = Vec::<String>::new();
    for fits in [
        "",
        "fraction = 0.4\ncutoff = 0.6",
        "fraction = 0.1\ncutoff = 0.9",
        "fraction = 0.4\ncutoff = 0.6\nedges_from = \"stream\"",
        "fraction = 0.1\nstrata = 70\n[window]\nmax_documents = 700",
        "fraction = 0.1\nstrata = 40\n[window]\nmax_documents = 1000\n[selection.sources]\nweb = 0.6\nbooks = 0.4",
    ] {
        assert_eq!(warnings(fits), none, "{fits}");
    }
    for (short, expected) in [
        ("fraction = 0.5\ncutoff = 0.6\nedges_from = \"stream\"", "`selection.cutoff = 0.6` leaves 0.4 of the stream"),
        (
            "fraction = 0.1\nstrata = 70\n[window]\nmax_documents = 690",
            "selects 69.0 documents, and `selection.strata = 70`",
        ),
        (
            "fraction = 0.1\nstrata = 41\n[window]\nmax_documents = 1000\n[selection.sources]\nweb = 0.6\nbooks = 0.4",
            "selects 40.0 documents of the pool with the smallest share, and `selection.strata = 41`",
        ),
        // All others have a hundredth.
        (
            "fraction = 0.1\nstrata = 40\n[window]\nmax_documents = 1000\n[selection.sources]\nweb = 0.6\nbooks = 0.39",
            "selects 1.0 documents of the pool with the smallest share",
        ),
    ] {
        let found = warnings(short);
        assert!(matches!(&found[..], [only] if only.contains(expected)), "{short}: {found:?}");
    }
}

#[test]
fn coverage_has_its_own_settings_as_on_files() {
    let of = |more: &str| {
        let toml = format!("[selection]\nselector = \"coverage\"\nimportance = \"nll\"\n{more}");
        load(&toml).unwrap().selector.coverage.unwrap()
    };
    let default = CoverageSettings { strata: 50, cutoff: None, within: Within::Weighted, clip: 0.005 };
    let nll = || Criterion::Field("nll".to_owned());
    assert_eq!(
        of(""),
        CoverageSelector {
            settings: default,
            importance: nll(),
            cutoff_by: nll(),
            edges_from: EdgesFrom::Window,
            strata_rounding: StrataRounding::Random,
        }
    );
    assert_eq!(of("edges_from = \"stream\"").edges_from, EdgesFrom::Stream);
    let edges = |toml: &str| load(toml).unwrap().edges.half_life_documents;
    assert_eq!((edges(""), edges("[selection]\nedges_half_life_documents = 20000")), (1_000_000, 20_000));
    let tail = |more: &str| of(more).settings.cutoff.unwrap().tail;
    assert_eq!(tail("cutoff = 0.2"), Tail::High);
    assert_eq!(tail("cutoff = 0.2\ncutoff_tail = \"low\""), Tail::Low);
    assert_eq!(tail("cutoff = 0.2\ncutoff_field = \"weight\""), Tail::Low);
    let far = of("cutoff = 0.2\ncutoff_field = \"weight\"\nwithin = \"uniform\"\nclip = 0\nstrata = 7");
    assert_eq!(
        (far.cutoff_by.clone(), far.settings.within, far.settings.strata),
        (Criterion::Weight, Within::Uniform, 7)
    );
    assert_eq!(far.fields(), [Some("nll"), None]);
    assert!(load("").unwrap().selector.coverage.is_none());
}

#[test]
fn sensitivity_takes_losses_from_where_there_are_some() {
    let of = |more: &str| {
        load(&format!("selection.selector = \"sensitivity\"\n{more}")).unwrap().selector.sensitivity.unwrap()
    };
    let default = SensitivitySelector {
        centres: 256,
        exponent: 2,
        floor: 0.1,
        embedding: None,
        losses: LossSource::None,
        centres_from: CentresFrom::Window,
    };
    assert_eq!(of(""), default);
    assert_eq!(of("feedback.topic = \"losses\"").losses, LossSource::Expected);
    assert_eq!(of("feedback.topic = \"losses\"\ndocuments.loss_field = \"l\"").losses, LossSource::Record);
    let embedding = of("selection.embedding_field = \"e\"\nselection.embedding_base64 = \"f32\"").embedding;
    assert_eq!(embedding, Some(EmbeddingField { field: "e".to_owned(), base64: Base64Floats::F32 }));
    assert!(load("").unwrap().selector.sensitivity.is_none());
}

#[test]
fn only_so_many_sources_have_shares() {
    let sources = |n: usize| (0..n).map(|i| format!("s{i} = 0.005\n")).collect::<String>();
    assert_eq!(load(&format!("[selection.sources]\n{}", sources(100))).unwrap().selector.quotas.sources.len(), 100);
    let found = mistakes(&format!("[selection.sources]\n{}", sources(101)));
    assert_eq!(found, ["`selection.sources` = `101 sources`: at most 100 can have a share"]);
}

#[test]
fn mistakes_are_reported_all_at_once() {
    let toml = "[selection]\nfraction = 2\ntemperature = -1\n[http]\nlisten = \"x\"\n[oops]\na = 1";
    assert_eq!(mistakes(toml).len(), 4, "{:#?}", mistakes(toml));
}

#[test]
fn variables_without_a_section_are_mistakes() {
    let error = Config::from_toml("", [("WINNOWD_KAFKA_BOOTSTRAP".to_owned(), "x:1".to_owned())]).unwrap_err();
    assert!(error.to_string().contains("`WINNOWD_KAFKA_BOOTSTRAP` names no key"), "{error}");
}

#[test]
fn secrets_do_not_show() {
    let toml = "[kafka]\nsecurity_protocol = \"sasl_plaintext\"\nsasl_mechanism = \"PLAIN\"\nsasl_username = \"me\"\nsasl_password = \"hunter2\"\n[kafka.properties]\n\"ssl.key.password\" = \"hunter2\"";
    let config = load(toml).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    for catalog in
        ["url = \"postgres://me:hunter2@host/db\"", "url = \"postgres://me@host/db\"\npassword = \"hunter2\""]
    {
        let config = load(&format!("[catalog]\n{catalog}")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.catalog.url.to_string(), "postgres://host/db");
        let CatalogUrl::Postgres(url) = config.catalog.url else { panic!("not SQLite") };
        assert_eq!((url.username(), url.password()), ("me", Some("hunter2")));
    }
    assert_eq!(config.kafka.sasl.unwrap().password.reveal(), "hunter2");
}
