//! The tokenizer that files are counted with.

use std::path::PathBuf;
use std::sync::Arc;

use super::UsageError;
use crate::tokenizer::{Tokenizer, TokenizerSettings};

#[derive(clap::Args)]
pub struct TokenizerArguments {
    /// Count tokens with this tokenizer.json of Hugging Face's tokenizers, too: in a column n_tokens_NAME
    #[arg(long, value_name = "FILE", help_heading = "Reading")]
    tokenizer: Option<PathBuf>,
    /// NAME in the name of that column [default: that of the file, without its ending]
    #[arg(long, value_name = "NAME", requires = "tokenizer", help_heading = "Reading")]
    tokenizer_name: Option<String>,
}

impl TokenizerArguments {
    /// Ready to count; `None`: none was named.
    pub fn load(&self) -> Result<Option<Arc<Tokenizer>>, UsageError> {
        let Some(path) = &self.tokenizer else { return Ok(None) };
        let settings = TokenizerSettings::new(path.clone(), self.tokenizer_name.as_deref()).map_err(|problem| {
            let (option, value) = match &self.tokenizer_name {
                Some(name) => ("--tokenizer-name", name.clone()),
                None => ("--tokenizer", path.display().to_string()),
            };
            UsageError(format!("{option} `{value}`: {problem}"))
        })?;
        let tokenizer = Tokenizer::load(&settings);
        let tokenizer = tokenizer.map_err(|e| UsageError(format!("--tokenizer `{}`: {e}", path.display())))?;
        Ok(Some(Arc::new(tokenizer)))
    }
}
