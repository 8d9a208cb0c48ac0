//! llama.cpp as an oracle: tokens, logits, greedy continuations, quantized models and blocks.
//!
//! The libraries are loaded at run time from the oracle folder (see [`crate::home`]); nothing of llama.cpp is built
//! or linked. It runs on the CPU and, as an oracle, in its plain form: no weight repacking and no fused attention, so
//! that every matmul is ggml's own dot product of the stored type on the best instruction set of this CPU. Who measures
//! speed asks for both ([`Model::load_repacked`], [`ContextOptions::flash_attention`]).
//!
//! ```no_run
//! use fonio_conformance::{home, llamacpp::{Context, ContextOptions, Model, Oracle}};
//! # fn main() -> Result<(), fonio_conformance::llamacpp::Error> {
//! let Some(oracle) = Oracle::find() else { return Ok(()) };
//! let model = Model::load(oracle, &home::models().join(home::SMOLLM2))?;
//! let tokens = model.tokenize("Water boils at", true, false)?;
//! let mut context = Context::new(&model, &ContextOptions::default())?;
//! context.logits(&tokens, |position, row| assert_eq!((position < tokens.len(), row.len()), (true, model.vocab_size())))?;
//! # Ok(())
//! # }
//! ```

mod abi;

use crate::home;
use abi::{Api, LOG_ERROR, TYPE_COUNT};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the oracle failed at, with what llama.cpp logged about it.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Errors that llama.cpp logged since the last failure was reported.
static LOGGED: Mutex<String> = Mutex::new(String::new());

/// Keeps error messages for [`Error`] and drops all others: llama.cpp would print them on standard error.
unsafe extern "C" fn log(level: i32, text: *const c_char, _user: *mut c_void) {
    if level != LOG_ERROR || text.is_null() {
        return;
    }
    // SAFETY: the library passes a C string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
}

fn failure(what: impl fmt::Display) -> Error {
    let logged = std::mem::take(&mut *LOGGED.lock().unwrap_or_else(PoisonError::into_inner));
    Error(format!("{what}{}{}", if logged.is_empty() { "" } else { ": " }, logged.trim_end()))
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| failure(format_args!("NUL in {}", path.display())))
}

/// The loaded llama.cpp libraries; one for the process.
pub struct Oracle {
    api: Api,
}

impl Oracle {
    /// The libraries of the oracle folder, loaded at the first call; `None` when they have not been fetched.
    ///
    /// # Panics
    /// When the libraries are there but cannot be loaded or are of another release.
    pub fn find() -> Option<&'static Oracle> {
        static ORACLE: OnceLock<Option<Oracle>> = OnceLock::new();
        let found = ORACLE.get_or_init(|| {
            let dir =
                home::oracle(&format!("llama.cpp/libllama.{}.so", abi::RELEASE))?.parent()?.to_path_buf();
            Some(
                Oracle::load(&dir)
                    .unwrap_or_else(|e| panic!("the llama.cpp oracle in {}: {e}", dir.display())),
            )
        });
        found.as_ref()
    }

    /// [`Oracle::find`], skipping the calling test or failing it as [`home::need`] does.
    #[track_caller]
    pub fn need() -> Option<&'static Oracle> {
        home::need("the llama.cpp oracle", Oracle::find())
    }

    fn load(dir: &Path) -> Result<Oracle, Error> {
        let api = Api::load(dir).map_err(Error)?;
        let dir = c_path(dir)?;
        // SAFETY: the signatures are the library's; the callback lives as long as the process and the path as long
        // as the call. The CPU backends are chosen by ggml from the files beside the library.
        unsafe {
            (api.f.llama_log_set)(log, std::ptr::null_mut());
            (api.f.ggml_backend_load_all_from_path)(dir.as_ptr());
            (api.f.llama_backend_init)();
        }
        Ok(Oracle { api })
    }

    /// The size in bytes of a row of `n` values of a ggml type; `None` when the type is unknown or its blocks do
    /// not divide `n`.
    pub fn row_bytes(&self, ggml_type: u32, n: usize) -> Option<usize> {
        let traits = self.api.traits(ggml_type)?;
        let block = usize::try_from(traits.blck_size).ok()?;
        n.is_multiple_of(block).then(|| n / block * traits.type_size)
    }

    /// Whether quantizing to this type needs an importance matrix.
    pub fn requires_imatrix(&self, ggml_type: u32) -> bool {
        // SAFETY: takes a number; unknown ones give false.
        ggml_type < TYPE_COUNT as u32
            && unsafe { (self.api.f.ggml_quantize_requires_imatrix)(ggml_type as i32) }
    }

    /// Quantizes rows of `n_per_row` values as ggml does. `imatrix` has one weight for each value of a row.
    pub fn quantize_chunk(
        &self,
        ggml_type: u32,
        rows: &[f32],
        n_per_row: usize,
        imatrix: Option<&[f32]>,
    ) -> Result<Vec<u8>, Error> {
        let what = |reason: &str| Err(Error(format!("quantize to type {ggml_type}: {reason}")));
        let Some(row_bytes) = self.row_bytes(ggml_type, n_per_row) else {
            return what("no whole blocks in a row");
        };
        if n_per_row == 0 || !rows.len().is_multiple_of(n_per_row) {
            return what("no whole rows");
        }
        if imatrix.is_some_and(|m| m.len() != n_per_row) {
            return what("the importance matrix is not one row long");
        }
        if imatrix.is_none() && self.requires_imatrix(ggml_type) {
            return what("needs an importance matrix");
        }
        // ggml ends the process for types without a quantizer.
        let has_quantizer =
            matches!(ggml_type, 0..=3 | 6..=8 | 10..=14 | 16..=23 | 29 | 30 | 34 | 35 | 39..=42);
        if !has_quantizer {
            return what("ggml has no quantizer");
        }
        let n_rows = rows.len() / n_per_row;
        let mut out = vec![0u8; n_rows * row_bytes];
        // SAFETY: `rows` holds n_rows × n_per_row values, `out` as many rows of the type, the matrix is null or
        // n_per_row long, and the type has a quantizer.
        let written = unsafe {
            (self.api.f.ggml_quantize_chunk)(
                ggml_type as i32,
                rows.as_ptr(),
                out.as_mut_ptr().cast(),
                0,
                n_rows as i64,
                n_per_row as i64,
                imatrix.map_or(std::ptr::null(), <[f32]>::as_ptr),
            )
        };
        if written != out.len() { what("wrote another size than the rows'") } else { Ok(out) }
    }

    /// Dequantizes `n` values from a row of a ggml type.
    pub fn dequantize(&self, ggml_type: u32, bytes: &[u8], n: usize) -> Result<Vec<f32>, Error> {
        if self.row_bytes(ggml_type, n) != Some(bytes.len()) {
            return Err(Error(format!(
                "dequantize type {ggml_type}: {} bytes are not {n} values",
                bytes.len()
            )));
        }
        if ggml_type == 0 {
            return Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect());
        }
        let Some(to_float) = self.api.traits(ggml_type).and_then(|t| t.to_float) else {
            return Err(Error(format!("dequantize type {ggml_type}: ggml does not")));
        };
        // ggml reads 2- and 4-byte fields in place, so the bytes are moved to where those are aligned.
        let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
        let mut out = vec![0f32; n];
        // SAFETY: `aligned` has room for the bytes and does not overlap them; the row holds n values of the type
        // by the check above, and `out` has room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), aligned.as_mut_ptr().cast(), bytes.len());
            to_float(aligned.as_ptr().cast(), out.as_mut_ptr(), n as i64);
        }
        Ok(out)
    }

    /// Quantizes a GGUF file as llama-quantize does.
    pub fn quantize_model(
        &self,
        source: &Path,
        target: &Path,
        options: &QuantizeOptions,
    ) -> Result<(), Error> {
        let (from, to) = (c_path(source)?, c_path(target)?);
        // SAFETY: returns a structure by value.
        let mut params = unsafe { (self.api.f.llama_model_quantize_default_params)() };
        params.nthread = options.threads as i32;
        params.ftype = options.ftype as i32;
        params.allow_requantize = options.allow_requantize.into();
        params.pure = options.pure.into();
        // SAFETY: both strings and the parameters live during the call.
        match unsafe { (self.api.f.llama_model_quantize)(from.as_ptr(), to.as_ptr(), &params) } {
            0 => Ok(()),
            code => Err(failure(format_args!("quantize {} gave {code}", source.display()))),
        }
    }
}

/// How [`Oracle::quantize_model`] works.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// llama.cpp's file type: 2 is Q4_0, 3 Q4_1, 7 Q8_0, 10 Q2_K, 15 Q4_K_M, 18 Q6_K, 30 IQ4_XS.
    pub ftype: u32,
    /// Worker threads.
    pub threads: usize,
    /// Whether tensors that are already quantized may be quantized again.
    pub allow_requantize: bool,
    /// Whether every tensor gets the file type's main type instead of the usual mixture.
    pub pure: bool,
}

impl QuantizeOptions {
    /// Two threads, the usual mixture, already quantized tensors accepted.
    pub fn new(ftype: u32) -> QuantizeOptions {
        QuantizeOptions { ftype, threads: 2, allow_requantize: true, pure: false }
    }
}

/// A model that llama.cpp has loaded.
pub struct Model {
    oracle: &'static Oracle,
    model: NonNull<c_void>,
    vocab: *const c_void,
    vocab_size: usize,
}

// SAFETY: llama.cpp's model is not changed after loading and is read from any thread.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Maps the file and loads it for the CPU.
    pub fn load(oracle: &'static Oracle, path: &Path) -> Result<Model, Error> {
        Model::load_with(oracle, path, false, false)
    }

    /// As [`Model::load`], but weights whose products are faster in another layout are copied into it, which is
    /// llama.cpp's default: for measuring speed.
    pub fn load_repacked(oracle: &'static Oracle, path: &Path) -> Result<Model, Error> {
        Model::load_with(oracle, path, false, true)
    }

    /// Loads the vocabulary alone, which is enough for tokens and their text.
    pub fn load_vocab(oracle: &'static Oracle, path: &Path) -> Result<Model, Error> {
        Model::load_with(oracle, path, true, false)
    }

    fn load_with(
        oracle: &'static Oracle,
        path: &Path,
        vocab_only: bool,
        repack: bool,
    ) -> Result<Model, Error> {
        let f = &oracle.api.f;
        let name = c_path(path)?;
        // SAFETY: returns a structure by value.
        let mut params = unsafe { (f.llama_model_default_params)() };
        params.n_gpu_layers = 0;
        params.load_mode = 1;
        params.use_extra_bufts = repack.into();
        params.vocab_only = vocab_only.into();
        // SAFETY: the string lives during the call and the parameters are the library's own with plain values
        // changed.
        let model = unsafe { (f.llama_model_load_from_file)(name.as_ptr(), params) };
        let Some(model) = NonNull::new(model) else {
            return Err(failure(format_args!("load {}", path.display())));
        };
        // SAFETY: the model is valid; its vocabulary lives as long.
        let (vocab, n) = unsafe {
            let vocab = (f.llama_model_get_vocab)(model.as_ptr());
            (vocab, (f.llama_vocab_n_tokens)(vocab))
        };
        Ok(Model { oracle, model, vocab, vocab_size: n.max(0) as usize })
    }

    /// Number of tokens in the vocabulary, which is the length of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The context length that the model was trained with.
    pub fn trained_context(&self) -> usize {
        // SAFETY: the model is valid.
        unsafe { (self.oracle.api.f.llama_model_n_ctx_train)(self.model.as_ptr()) }.max(0) as usize
    }

    /// The token that begins a text, if the model wants one there.
    pub fn leading_bos(&self) -> Option<u32> {
        let f = &self.oracle.api.f;
        // SAFETY: the vocabulary is valid.
        let (wanted, bos) =
            unsafe { ((f.llama_vocab_get_add_bos)(self.vocab), (f.llama_vocab_bos)(self.vocab)) };
        if wanted { u32::try_from(bos).ok() } else { None }
    }

    /// Whether a token ends a generation.
    pub fn is_end(&self, token: u32) -> bool {
        // SAFETY: the vocabulary is valid and the token within it.
        (token as usize) < self.vocab_size
            && unsafe { (self.oracle.api.f.llama_vocab_is_eog)(self.vocab, token as i32) }
    }

    /// Text to tokens. `add_special` adds the tokens that the model wants around a text, `parse_special` reads
    /// control tokens written in the text.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, Error> {
        let n_text = i32::try_from(text.len()).map_err(|_| failure("tokenize: the text is over 2 GiB"))?;
        // Every token but the added ones stands for at least one byte.
        let mut tokens = vec![0i32; text.len() + 8];
        for _ in 0..2 {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: text and tokens are as long as is said.
            let n = unsafe {
                (self.oracle.api.f.llama_tokenize)(
                    self.vocab,
                    text.as_ptr().cast(),
                    n_text,
                    tokens.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            if n >= 0 {
                return tokens[..n as usize]
                    .iter()
                    .map(|&t| u32::try_from(t).map_err(|_| failure("tokenize gave a negative token")))
                    .collect();
            }
            tokens.resize(n.unsigned_abs() as usize, 0);
        }
        Err(failure("tokenize"))
    }

    /// Tokens to the bytes of their text, which need not be whole UTF-8. `special` writes control tokens out.
    pub fn detokenize(&self, tokens: &[u32], special: bool) -> Result<Vec<u8>, Error> {
        let ids = self.checked(tokens)?;
        let mut text = vec![0u8; 16 * tokens.len() + 64];
        for _ in 0..2 {
            // SAFETY: tokens and text are as long as is said.
            let n = unsafe {
                (self.oracle.api.f.llama_detokenize)(
                    self.vocab,
                    ids.as_ptr(),
                    ids.len() as i32,
                    text.as_mut_ptr().cast(),
                    text.len() as i32,
                    false,
                    special,
                )
            };
            text.resize(n.unsigned_abs() as usize, 0);
            if n >= 0 {
                return Ok(text);
            }
        }
        Err(failure("detokenize"))
    }

    /// The tokens as llama.cpp takes them, each within the vocabulary.
    fn checked(&self, tokens: &[u32]) -> Result<Vec<i32>, Error> {
        match tokens.iter().find(|&&t| t as usize >= self.vocab_size) {
            Some(token) => Err(failure(format_args!("token {token} is not in the vocabulary"))),
            None => Ok(tokens.iter().map(|&t| t as i32).collect()),
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the model is valid and every context borrows it, so none is left.
        unsafe { (self.oracle.api.f.llama_model_free)(self.model.as_ptr()) }
    }
}

/// How a [`Context`] computes.
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Positions that fit.
    pub n_ctx: usize,
    /// Tokens computed at a time, for each of which a row of logits is kept: batch × vocabulary × 4 bytes.
    pub n_batch: usize,
    /// Threads. ggml's wait for each other by spinning, dozens of times a token: on a machine that is busy with other
    /// tests one thread is faster than two.
    pub threads: usize,
    /// Whether keys and values are cached as f32 instead of llama.cpp's default f16.
    pub f32_cache: bool,
    /// Whether attention is fused; llama.cpp's fused attention sums values in f16.
    pub flash_attention: bool,
    /// Whether a batch keeps the logits of its last token alone, which takes less memory; then [`Context::extend`]
    /// fails for more than one token.
    pub last_only: bool,
}

impl Default for ContextOptions {
    fn default() -> ContextOptions {
        ContextOptions {
            n_ctx: 512,
            n_batch: 128,
            threads: 1,
            f32_cache: false,
            flash_attention: false,
            last_only: false,
        }
    }
}

/// A sequence of tokens that a model has seen.
pub struct Context<'m> {
    model: &'m Model,
    context: NonNull<c_void>,
    position: usize,
    n_ctx: usize,
    n_batch: usize,
}

// SAFETY: llama.cpp's context is used by one thread at a time, which `&mut self` ensures.
unsafe impl Send for Context<'_> {}

impl<'m> Context<'m> {
    /// An empty sequence.
    pub fn new(model: &'m Model, options: &ContextOptions) -> Result<Context<'m>, Error> {
        let f = &model.oracle.api.f;
        // SAFETY: returns a structure by value.
        let mut params = unsafe { (f.llama_context_default_params)() };
        params.n_ctx = options.n_ctx as u32;
        params.n_batch = options.n_batch as u32;
        params.n_ubatch = options.n_batch as u32;
        params.n_outputs_max_per_seq = if options.last_only { 1 } else { options.n_batch as u32 };
        params.n_threads = options.threads as i32;
        params.n_threads_batch = options.threads as i32;
        params.flash_attn_type = options.flash_attention.into();
        params.type_k = if options.f32_cache { 0 } else { 1 };
        params.type_v = params.type_k;
        // SAFETY: the model outlives the context, which borrows it; the parameters are the library's own with plain
        // values changed.
        let context = unsafe { (f.llama_init_from_model)(model.model.as_ptr(), params) };
        let Some(context) = NonNull::new(context) else { return Err(failure("make a context")) };
        Ok(Context { model, context, position: 0, n_ctx: options.n_ctx, n_batch: options.n_batch })
    }

    /// The model of this sequence.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        let f = &self.model.oracle.api.f;
        // SAFETY: the context is valid.
        unsafe { (f.llama_memory_clear)((f.llama_get_memory)(self.context.as_ptr()), true) }
        self.position = 0;
    }

    /// Adds tokens and gives each one's logits to `each`, with its place in `tokens`.
    pub fn extend(&mut self, tokens: &[u32], mut each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        for (i, chunk) in tokens.chunks(self.n_batch).enumerate() {
            self.decode(chunk, true)?;
            for j in 0..chunk.len() {
                each(i * self.n_batch + j, self.row(j)?);
            }
        }
        Ok(())
    }

    /// Adds tokens and returns the logits after the last one. `tokens` must not be empty.
    pub fn extend_to_last(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        for chunk in tokens.chunks(self.n_batch) {
            self.decode(chunk, false)?;
        }
        let last = tokens.len().checked_sub(1).ok_or_else(|| failure("no tokens to add"))?;
        self.row(last % self.n_batch)
    }

    /// The logits of a text from its beginning: [`Context::clear`], then [`Context::extend`].
    pub fn logits(&mut self, tokens: &[u32], each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        self.clear();
        self.extend(tokens, each)
    }

    /// The `n` likeliest tokens after a prompt, one after another, each with the margin in logits between the two
    /// best. An end token does not stop the run.
    pub fn greedy(&mut self, prompt: &[u32], n: usize) -> Result<Vec<(u32, f32)>, Error> {
        crate::compare::greedy(self, prompt, n)
    }

    fn decode(&mut self, tokens: &[u32], all: bool) -> Result<(), Error> {
        if self.position + tokens.len() > self.n_ctx {
            return Err(failure(format_args!("the context of {} is full", self.n_ctx)));
        }
        let ids = self.model.checked(tokens)?;
        let positions: Vec<i32> = (0..ids.len()).map(|i| (self.position + i) as i32).collect();
        let wanted: Vec<i8> = (0..ids.len()).map(|i| i8::from(all || i + 1 == ids.len())).collect();
        let sequence = [0i32];
        let sequences = vec![sequence.as_ptr(); ids.len()];
        let counts = vec![1i32; ids.len()];
        let batch = abi::Batch {
            n_tokens: ids.len() as i32,
            token: ids.as_ptr(),
            embd: std::ptr::null(),
            pos: positions.as_ptr(),
            n_seq_id: counts.as_ptr(),
            seq_id: sequences.as_ptr(),
            logits: wanted.as_ptr(),
        };
        // SAFETY: the context is valid; every array of the batch is n_tokens long and lives during the call.
        match unsafe { (self.model.oracle.api.f.llama_decode)(self.context.as_ptr(), batch) } {
            0 => {
                self.position += ids.len();
                Ok(())
            }
            code => Err(failure(format_args!("decode gave {code}"))),
        }
    }

    /// The logits of the `i`-th token of the last batch.
    fn row(&self, i: usize) -> Result<&[f32], Error> {
        // SAFETY: the context is valid; an index without logits gives null.
        let row = unsafe { (self.model.oracle.api.f.llama_get_logits_ith)(self.context.as_ptr(), i as i32) };
        if row.is_null() {
            return Err(failure(format_args!("no logits for token {i} of the batch")));
        }
        // SAFETY: a row is vocab_size values, valid until the next decode, which needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(row, self.model.vocab_size) })
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: the context is valid and not used after.
        unsafe { (self.model.oracle.api.f.llama_free)(self.context.as_ptr()) }
    }
}
