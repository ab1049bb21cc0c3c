use proptest::prelude::*;

use super::*;

#[path = "../../tests/support/tokenizer.rs"]
mod bpe;

const TEXT: &str =
    "The quick brown fox jumps over the lazy dog.\nA quick dog jumps, and the fox is lazy.\n\n    The end.\n";

fn trained() -> Vec<u8> {
    bpe::trained(&[TEXT], 320)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes("bpe", &trained()).unwrap()
}

/// What the library itself says.
fn by_library(tokenizer: &Tokenizer, text: &str) -> u32 {
    tokenizer.inner.encode_fast(text, false).unwrap().len() as u32
}

fn problem(json: &str) -> String {
    Tokenizer::from_bytes("t", json.as_bytes()).unwrap_err().to_string()
}

proptest! {
    #[test]
    fn tokens_are_those_of_the_library(parts in prop::collection::vec(prop_oneof![".{0,30}", Just(TEXT.to_owned()), Just("<|end|>".to_owned()), Just("\n \t\r\n".to_owned())], 0..6)) {
        let (tokenizer, text) = (tokenizer(), parts.concat());
        prop_assert_eq!(tokenizer.count(&text), Some(by_library(&tokenizer, &text)));
    }
}

#[test]
fn merges_make_fewer_tokens_than_bytes_and_nothing_is_added() {
    let tokenizer = tokenizer();
    let n_tokens = tokenizer.count(TEXT).unwrap();
    assert!((10..TEXT.len() as u32 / 2).contains(&n_tokens), "{n_tokens} of {} bytes", TEXT.len());
    assert_eq!((tokenizer.count(""), tokenizer.count("<|end|>"), tokenizer.count("~")), (Some(0), Some(1), Some(1)));
    assert_eq!((tokenizer.name(), tokenizer.column().as_str()), ("bpe", "n_tokens_bpe"));
    assert!(tokenizer.digest().starts_with("sha256:"));
    // A file that says that texts are cut or filled up is for a model's input.
    let mut json: serde_json::Value = serde_json::from_slice(&trained()).unwrap();
    json["truncation"] =
        serde_json::json!({ "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 });
    let cutting = Tokenizer::from_bytes("bpe", json.to_string().as_bytes()).unwrap();
    assert_eq!(by_library(&cutting, TEXT), 3);
    assert_eq!(cutting.count(TEXT), Some(n_tokens));
}

/// Behind a line break no token goes on, so that pieces make no difference where there are lines.
#[test]
fn long_texts_are_taken_in_pieces() {
    let tokenizer = tokenizer();
    let text = TEXT.repeat(3 * PIECE_BYTES / TEXT.len() / 2);
    assert!(text.len() > PIECE_BYTES && piece_end(&text) < PIECE_BYTES);
    assert_eq!(tokenizer.count(&text), Some(by_library(&tokenizer, &text)));
    // Where there is no place for it, between any two characters: one of these has three bytes.
    let text = "\u{6f22}".repeat(PIECE_BYTES / 3 + 100);
    assert_eq!(piece_end(&text), PIECE_BYTES - PIECE_BYTES % 3);
    assert!(tokenizer.count(&text).unwrap().abs_diff(by_library(&tokenizer, &text)) <= 2);
}

#[test]
fn files_that_cannot_count_are_refused() {
    assert!(problem("{}").starts_with("is no tokenizer.json of Hugging Face's tokenizers: "), "{}", problem("{}"));
    assert!(problem("not json").starts_with("is no tokenizer.json"));
    let mut json: serde_json::Value = serde_json::from_slice(&trained()).unwrap();
    json["model"]["dropout"] = 0.1.into();
    assert!(problem(&json.to_string()).contains("at random"));
    json["model"] = serde_json::json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "[UNK]" });
    assert!(problem(&json.to_string()).starts_with("cannot tokenise every text: "));
    let missing = TokenizerSettings::new("no/such/tokenizer.json".into(), None).unwrap();
    assert!(Tokenizer::load(&missing).unwrap_err().to_string().starts_with("cannot be read: "));
}

#[test]
fn names_become_columns() {
    let settings = |path: &str, name| TokenizerSettings::new(path.into(), name);
    let long = "x".repeat(65);
    assert_eq!(settings("a/tokenizer.json", None).unwrap().column(), "n_tokens_tokenizer");
    assert_eq!(settings("a/llama-3.1.json", None).unwrap().name, "llama_3_1");
    assert_eq!(settings("a/b.json", Some("Llama3")).unwrap().column(), "n_tokens_Llama3");
    for wrong in ["", "a-b", "a b", "\u{e9}", &long] {
        assert!(settings("a.json", Some(wrong)).is_err(), "`{wrong}` was taken");
    }
    assert!(settings("", None).is_err());
}
