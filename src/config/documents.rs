//! What the records of the topics are, and where their schemas are asked for.

use std::time::Duration;

use super::checked::{DAY, GIB, HOUR};
use super::reader::Reader;
use super::{RegistryConfig, Secret};
use crate::record::{Decoder, FieldNames, Format, TextFormat};

const FORMATS: [&str; 4] = ["json", "text", "avro", "protobuf"];
/// Each is looked for in every record.
const MAX_HEADERS: usize = 100;

pub(super) fn documents(r: &mut Reader) -> (Decoder, Option<RegistryConfig>) {
    let fields = fields(r);
    let name = r.choice("documents.format", &FORMATS);
    let text = text(r, &name, &fields);
    let format = match name.as_str() {
        "text" => Format::Text(text),
        "avro" => Format::Avro,
        "protobuf" => Format::Protobuf,
        _ => Format::Json,
    };
    let registry = registry(r, &name, format.is_framed());
    let max_bytes = r.bytes("documents.max_bytes", 1..=GIB) as usize;
    (Decoder { format, fields, max_bytes }, registry)
}

/// What stands beside a text.
fn text(r: &mut Reader, format: &str, fields: &FieldNames) -> TextFormat {
    let id_from_key = r.choice("documents.text.id", &["key", "position"]) == "key";
    let source = r.optional("documents.text.source");
    let source_header = r.optional("documents.text.source_header");
    let headers = r.list("documents.text.headers");
    if headers.len() > MAX_HEADERS {
        r.error("documents.text.headers", &format!("{} headers", headers.len()), format!("at most {MAX_HEADERS}"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for header in headers.iter().filter(|header| !seen.insert(*header)) {
        r.error("documents.text.headers", header, "named twice");
    }
    if format == "text" {
        if let Some(loss) = &fields.loss {
            r.error("documents.loss_field", loss, "has no effect with documents.format = text, which has no fields");
        }
    } else {
        let headers = (!headers.is_empty()).then(|| headers.join(","));
        for (key, value) in [("source", &source), ("source_header", &source_header), ("headers", &headers)] {
            if let Some(value) = value {
                let problem = format!("has no effect with documents.format = {format}");
                r.error(&format!("documents.text.{key}"), value, problem);
            }
        }
    }
    TextFormat { id_from_key, source_header, source, headers }
}

fn registry(r: &mut Reader, format: &str, is_wanted: bool) -> Option<RegistryConfig> {
    let given = r.optional("documents.registry.url");
    let is_given = given.is_some();
    let url = given.and_then(|value| match registry_url(&value) {
        Ok(url) => Some(url),
        Err(problem) => {
            // What stands before an @ may be a password.
            r.error("documents.registry.url", if value.contains('@') { "***" } else { value.as_str() }, problem);
            None
        }
    });
    let user = r.optional("documents.registry.user");
    let password = r.optional("documents.registry.password").map(Secret::new);
    let timeout = r.duration("documents.registry.timeout", Duration::from_millis(10)..=HOUR);
    let max_backoff = r.duration("documents.registry.max_backoff", Duration::from_millis(10)..=HOUR);
    let unknown_for = r.duration("documents.registry.unknown_for", Duration::ZERO..=DAY);
    let shown = url.as_ref().map(url::Url::to_string);
    match &shown {
        None if is_wanted && !is_given => {
            r.error("documents.registry.url", "", format!("must be set with documents.format = {format}"));
        }
        Some(url) if !is_wanted => {
            r.error("documents.registry.url", url, format!("has no effect with documents.format = {format}"));
        }
        _ => {}
    }
    if let (None, Some(_)) = (&user, &password) {
        r.error("documents.registry.password", "***", "has no effect without documents.registry.user");
    }
    if let (Some(user), None) = (&user, &shown) {
        r.error("documents.registry.user", user, "has no effect without documents.registry.url");
    }
    url.map(|url| RegistryConfig { url, user, password, timeout, max_backoff, unknown_for })
}

/// Paths are appended to it, so that it may have one of its own.
fn registry_url(value: &str) -> Result<url::Url, String> {
    let url = url::Url::parse(value).map_err(|e| format!("{e}; expected http://HOST:8081 or https://…"))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err("expected http://HOST:8081 or https://…".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("names a user: use documents.registry.user and .password".to_owned());
    }
    Ok(url)
}

fn fields(r: &mut Reader) -> FieldNames {
    let text = r.string("documents.text_field");
    if text.is_empty() {
        r.error("documents.text_field", "", "must be set");
    }
    let fields = FieldNames {
        id: r.optional("documents.id_field"),
        source: r.optional("documents.source_field"),
        timestamp: r.optional("documents.timestamp_field"),
        loss: r.optional("documents.loss_field"),
        reference_loss: r.optional("documents.reference_loss_field"),
        text,
    };
    let mut names = vec![("documents.text_field", fields.text.clone())];
    for (key, name) in [
        ("documents.id_field", &fields.id),
        ("documents.source_field", &fields.source),
        ("documents.timestamp_field", &fields.timestamp),
        ("documents.loss_field", &fields.loss),
        ("documents.reference_loss_field", &fields.reference_loss),
    ] {
        let Some(name) = name else { continue };
        if let Some((other, _)) = names.iter().find(|(_, taken)| taken == name) {
            r.error(key, name, format!("the same field as {other}"));
        }
        names.push((key, name.clone()));
    }
    if let (None, Some(name)) = (&fields.loss, &fields.reference_loss) {
        r.error("documents.reference_loss_field", name, "has no effect without documents.loss_field");
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::Config;
    use crate::record::{Format, RecordPart};

    fn mistakes(toml: &str) -> String {
        Config::from_toml(toml, []).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn records_are_json_unless_somebody_says_otherwise() {
        let config = Config::from_toml("", []).expect("the defaults");
        assert_eq!(config.decoder.format, Format::Json);
        assert!(config.registry.is_none() && config.kafka.parts.is_empty());
    }

    #[test]
    fn a_registry_has_its_secret_from_the_environment() {
        let toml = "[documents]\nformat = \"avro\"\n[documents.registry]\nurl = \"https://r/api\"\nuser = \"u\"";
        let password = ("WINNOWD_DOCUMENTS__REGISTRY__PASSWORD".to_owned(), "hunter2".to_owned());
        let config = Config::from_toml(toml, [password]).expect("valid");
        assert_eq!(config.decoder.format, Format::Avro);
        assert!(!format!("{config:?}").contains("hunter2"));
        let registry = config.registry.expect("a registry");
        assert_eq!((registry.url.as_str(), registry.user.as_deref()), ("https://r/api", Some("u")));
        assert_eq!(registry.password.expect("a password").reveal(), "hunter2");
        assert_eq!((registry.timeout, registry.unknown_for), (Duration::from_secs(10), Duration::from_secs(60)));
    }

    #[test]
    fn a_text_names_what_it_wants_beside_itself() {
        let toml = "[documents]\nformat = \"text\"\n[documents.text]\nid = \"position\"\nsource_header = \"from\"\nheaders = [\"a\"]";
        let config = Config::from_toml(toml, []).expect("valid");
        let header = |name: &str| RecordPart::Header(name.to_owned());
        assert_eq!(config.kafka.parts, [header("from"), header("a")]);
    }

    #[test]
    fn every_mistake_is_named() {
        let said = mistakes("[documents]\nformat = \"xml\"");
        assert!(said.contains("`documents.format` = `xml`: expected one of: json, text, avro, protobuf"), "{said}");
        let said = mistakes("documents.format = \"protobuf\"");
        assert!(said.contains("`documents.registry.url` = ``: must be set with documents.format = protobuf"), "{said}");
        let toml = "documents.registry.url = \"http://r\"\ndocuments.text.source = \"web\"\ndocuments.text.headers = [\"a\", \"a\"]\n\
                    documents.registry.password = \"hunter2\"";
        let said = mistakes(toml);
        for part in [
            "`documents.registry.url` = `http://r/`: has no effect with documents.format = json",
            "`documents.text.source` = `web`: has no effect with documents.format = json",
            "`documents.text.headers` = `a`: named twice",
            "`documents.registry.password` = `***`: has no effect without documents.registry.user",
        ] {
            assert!(said.contains(part), "`{part}` is not in:\n{said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
        let said = mistakes("documents.format = \"avro\"\ndocuments.registry.url = \"http://u:hunter2@r\"");
        assert!(said.contains("names a user") && !said.contains("hunter2"), "{said}");
        assert!(
            mistakes("documents.format = \"avro\"\ndocuments.registry.url = \"r:8081\"").contains("expected http://")
        );
        let said = mistakes("documents.format = \"text\"\ndocuments.loss_field = \"loss\"");
        assert!(said.contains("has no effect with documents.format = text"), "{said}");
    }
}
