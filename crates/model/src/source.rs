//! Where a model comes from: a GGUF or QSF file or a Hugging Face folder, in one view.

use crate::arch::{self, Architecture};
use crate::keys::Keys;
use crate::spec::ModelSpec;
use crate::{Error, hf, qsf, vocab};
use fonio_checkpoint::{Checkpoint, Metadata};
use fonio_text::{ChatTemplate, Tokenizer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened model: a checkpoint with GGUF's names, its architecture and spec, and its tokenizer when asked for.
pub struct Source {
    path: PathBuf,
    checkpoint: Arc<dyn Checkpoint>,
    architecture: &'static Architecture,
    spec: ModelSpec,
    /// The folder, if the model is a Hugging Face one: its tokenizer is in files of their own.
    folder: Option<PathBuf>,
    assumed: Option<String>,
}

impl Source {
    /// Opens a model file, a folder, or a weights file in a Hugging Face folder.
    pub fn open(path: &Path) -> Result<Source, Error> {
        let folder = if path.is_dir() { Some(path) } else { path.parent().filter(|_| is_weights_only(path)) };
        if let Some(folder) = folder {
            // The parent of a bare file name is the empty path.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            // Beside a configuration all files are one model.
            let weights = if folder.join("config.json").is_file() { folder } else { path };
            return Source::import(path, weights, folder);
        }
        let checkpoint: Arc<dyn Checkpoint> = fonio_checkpoint::open(path)?.into();
        if let Some(source) = Source::of_whole(path, &checkpoint)? {
            return Ok(source);
        }
        Source::import(path, path, path.parent().unwrap_or(path))
    }

    /// Whether a file is a model without any other beside it.
    pub fn is_whole(checkpoint: &dyn Checkpoint) -> bool {
        checkpoint.metadata().get("general.architecture").is_some() || qsf::is_qsf(checkpoint)
    }

    /// A file that has its configuration and tokenizer in it.
    fn of_whole(path: &Path, checkpoint: &Arc<dyn Checkpoint>) -> Result<Option<Source>, Error> {
        if checkpoint.metadata().get("general.architecture").is_some() {
            return Source::of_gguf(path, checkpoint.clone()).map(Some);
        }
        if !qsf::is_qsf(checkpoint.as_ref()) {
            return Ok(None);
        }
        let (view, architecture, assumed) = qsf::import(path, checkpoint.clone())?;
        let spec = (architecture.spec)(&Keys::new(&view, architecture.name))?;
        let checkpoint: Arc<dyn Checkpoint> = Arc::new(view);
        Ok(Some(Source { path: path.into(), checkpoint, architecture, spec, folder: None, assumed }))
    }

    fn of_gguf(path: &Path, checkpoint: Arc<dyn Checkpoint>) -> Result<Source, Error> {
        let checkpoint = hf::older::renew(checkpoint)?;
        let (architecture, spec) = arch::resolve(checkpoint.as_ref())?;
        Ok(Source { path: path.into(), checkpoint, architecture, spec, folder: None, assumed: None })
    }

    fn import(path: &Path, weights: &Path, folder: &Path) -> Result<Source, Error> {
        // A folder may also hold nothing but a file that is a whole model.
        if !folder.join("config.json").is_file() {
            let checkpoint: Arc<dyn Checkpoint> = fonio_checkpoint::open(weights)?.into();
            if let Some(source) = Source::of_whole(path, &checkpoint)? {
                return Ok(source);
            }
        }
        let hf::Imported { view, architecture, assumed } = hf::import(weights, folder)?;
        let checkpoint: Arc<dyn Checkpoint> = Arc::new(view);
        let spec = (architecture.spec)(&Keys::new(checkpoint.as_ref(), architecture.name))?;
        Ok(Source { path: path.into(), checkpoint, architecture, spec, folder: Some(folder.into()), assumed })
    }

    /// A sentence on what had to be assumed about a model without configuration.
    pub fn assumed(&self) -> Option<&str> {
        self.assumed.as_deref()
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors and metadata, with GGUF's names.
    pub fn checkpoint(&self) -> &Arc<dyn Checkpoint> {
        &self.checkpoint
    }

    /// The architecture.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The Hugging Face folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Makes the tokenizer.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let text = |source| Error::Text { file: self.path.clone(), source };
        if let Some(folder) = &self.folder {
            return Tokenizer::from_dir(folder).map_err(text);
        }
        let wrong = |(key, reason)| Error::Config { file: self.path.clone(), key, reason };
        let vocab = vocab::from_metadata(self.checkpoint.metadata()).map_err(wrong)?;
        let vocab = vocab.ok_or_else(|| wrong(("tokenizer.ggml.model".into(), "is missing".into())))?;
        Tokenizer::from_vocab(vocab).map_err(text)
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>, Error> {
        let made = tokenizer.chat_template().map(ChatTemplate::new).transpose();
        made.map_err(|source| Error::Text { file: self.path.clone(), source })
    }

    /// Metadata of a GGUF file with everything that this source has, tokenizer included.
    pub fn complete_metadata(&self) -> Result<Metadata, Error> {
        let mut metadata = self.checkpoint.metadata().clone();
        if self.folder.is_some() {
            let mut all = self.tokenizer()?.vocab().clone();
            let tokens = all.tokens.len();
            if tokens > self.spec.vocab_size {
                return Err(Error::Config {
                    file: self.path.clone(),
                    key: "vocab_size".into(),
                    reason: format!(
                        "the tokenizer has {tokens} tokens, the embedding {}",
                        self.spec.vocab_size
                    ),
                });
            }
            all.pad_to(self.spec.vocab_size);
            vocab::to_metadata(&all, &mut metadata);
        }
        Ok(metadata)
    }
}

/// Whether a file holds weights whose configuration is beside it.
fn is_weights_only(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    [".safetensors", ".bin", ".pt", ".pth", ".index.json"].iter().any(|end| name.ends_with(end))
        || name == "config.json"
}
