//! A tokenizer of the user's own: a `tokenizer.json` of Hugging Face's `tokenizers` → how many of its tokens a text has.
//!
//! In: a text. Out: as many tokens as the library gives for it, without special ones, neither truncated nor padded. The number
//! depends on the file and the text alone. Of a text of more than [`PIECE_BYTES`] the tokens of pieces are added up, which begin
//! behind the end of a line, since the library holds some sixty bytes for each one of a text. There a token may be more or less.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use tokenizers::{Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer};

/// Longer texts are taken in pieces.
pub const PIECE_BYTES: usize = 256 << 10;
/// Of the name of a tokenizer.
const MAX_NAME_BYTES: usize = 64;
/// What any tokenizer can take: a file that fails on it would fail on the stream.
const PROBE: &str = "Hello, world!\n\n  x = 1; \u{e9} \u{6f22}\u{5b57} \u{1f642}";

/// Where a tokenizer is, and what its column is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerSettings {
    pub path: PathBuf,
    /// Valid.
    pub name: String,
}

/// A tokenizer that is ready to count.
pub struct Tokenizer {
    name: String,
    digest: String,
    inner: tokenizers::Tokenizer,
}

/// What is wrong with a tokenizer's file.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("is no tokenizer.json of Hugging Face's tokenizers: {0}")]
    Invalid(String),
    #[error("leaves merges out at random (its model has a dropout), so that nobody can say how many tokens a text has")]
    Random,
    #[error("cannot tokenise every text: {0}")]
    Unusable(String),
}

/// The column of a tokenizer of this name.
pub fn token_column(name: &str) -> String {
    format!("n_tokens_{name}")
}

impl TokenizerSettings {
    /// With this name, or the file's without its ending and with underscores for what no name of a column may have.
    pub fn new(path: PathBuf, name: Option<&str>) -> Result<Self, &'static str> {
        let is_fine = |c: char| c == '_' || c.is_ascii_alphanumeric();
        let name = match name {
            Some(name) => name.to_owned(),
            None => {
                let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
                stem.chars().map(|c| if is_fine(c) { c } else { '_' }).take(MAX_NAME_BYTES).collect()
            }
        };
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_fine) {
            return Err("expected 1 to 64 letters, digits or underscores: it names the column n_tokens_NAME");
        }
        Ok(TokenizerSettings { path, name })
    }

    pub fn column(&self) -> String {
        token_column(&self.name)
    }
}

impl Tokenizer {
    pub fn load(settings: &TokenizerSettings) -> Result<Self, TokenizerError> {
        let bytes = std::fs::read(&settings.path).map_err(TokenizerError::Unreadable)?;
        Self::from_bytes(&settings.name, &bytes)
    }

    /// `name`: valid.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::Invalid(e.to_string()))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err(TokenizerError::Random);
        }
        let digest = format!("sha256:{}", crate::hex(&Sha256::digest(bytes)));
        let tokenizer = Tokenizer { name: name.to_owned(), digest, inner };
        tokenizer.count_piece(PROBE).map_err(|e| TokenizerError::Unusable(e.to_string()))?;
        Ok(tokenizer)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `sha256:` and hex, of the file's bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn column(&self) -> String {
        token_column(&self.name)
    }

    /// The number of tokens; `None` of a text that the tokenizer fails on.
    pub fn count(&self, text: &str) -> Option<u32> {
        let (mut rest, mut n_tokens) = (text, 0u64);
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(piece_end(rest));
            n_tokens += self.count_piece(piece).ok()?;
            rest = others;
        }
        Some(u32::try_from(n_tokens).unwrap_or(u32::MAX))
    }

    /// What `encode_fast` does but for what it makes of the tokens, which nobody looks at here.
    fn count_piece(&self, text: &str) -> tokenizers::Result<u64> {
        let normalizer = self.inner.get_normalizer();
        let mut parts = self.inner.get_added_vocabulary().extract_and_normalize(normalizer, text);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        let mut n_tokens = 0;
        for (part, _, added) in parts.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            n_tokens += match added {
                Some(tokens) => tokens.len(),
                None => self.inner.get_model().tokenize(part)?.len(),
            } as u64;
        }
        Ok(n_tokens)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("name", &self.name).field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Where the first piece of a text ends: behind the last line break that no white space follows, so that hardly any tokenizer has a token
/// across it, or between any two characters.
fn piece_end(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let most = text.floor_char_boundary(PIECE_BYTES);
    let begins_line = |&(at, _): &(usize, &str)| !text[at + 1..].starts_with(char::is_whitespace);
    text[..most].rmatch_indices('\n').find(begins_line).map_or(most, |(at, _)| at + 1)
}

#[cfg(test)]
mod tests;
