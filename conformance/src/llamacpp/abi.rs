//! The part of llama.cpp's C interface that the oracle uses, as facts of release v0.5.0.
//!
//! Only the fields' order and types are stated here. `Api::load` asks the library for its default parameters and
//! checks that every telling field has the value that this release documents, so that a library of another layout
//! is refused and never called with a wrong structure.

use libloading::Library;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;

/// The release whose layouts these are; part of the libraries' file names.
pub const RELEASE: &str = "v0.5.0";
/// ggml's number of tensor types in this release; stands for "no type" in quantization parameters.
pub const TYPE_COUNT: i32 = 43;
/// Severity of error messages in the log callback.
pub const LOG_ERROR: i32 = 4;

/// C's `bool` in a structure. A byte, so that a library of another layout cannot hand over a `bool` that is neither.
pub type Flag = u8;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ModelParams {
    pub devices: *const c_void,
    pub tensor_buft_overrides: *const c_void,
    pub n_gpu_layers: i32,
    pub split_mode: i32,
    /// 0 reads the file, 1 maps it, -1 chooses.
    pub load_mode: i32,
    pub lazy_mode: i32,
    pub main_gpu: i32,
    pub tensor_split: *const f32,
    pub progress_callback: *const c_void,
    pub progress_callback_user_data: *const c_void,
    pub kv_overrides: *const c_void,
    pub vocab_only: Flag,
    pub check_tensors: Flag,
    pub use_extra_bufts: Flag,
    pub no_host: Flag,
    pub no_alloc: Flag,
    pub load_mtp: Flag,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ContextParams {
    pub n_ctx: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_seq_max: u32,
    pub n_rs_seq: u32,
    pub n_outputs_max: u32,
    pub n_outputs_max_per_seq: u32,
    pub n_threads: i32,
    pub n_threads_batch: i32,
    pub ctx_type: i32,
    pub rope_scaling_type: i32,
    pub pooling_type: i32,
    pub attention_type: i32,
    /// 0 off, 1 on, -1 chooses.
    pub flash_attn_type: i32,
    pub rope_freq_base: f32,
    pub rope_freq_scale: f32,
    pub yarn_ext_factor: f32,
    pub yarn_attn_factor: f32,
    pub yarn_beta_fast: f32,
    pub yarn_beta_slow: f32,
    pub yarn_orig_ctx: u32,
    pub defrag_thold: f32,
    pub cb_eval: *const c_void,
    pub cb_eval_user_data: *const c_void,
    pub type_k: i32,
    pub type_v: i32,
    pub abort_callback: *const c_void,
    pub abort_callback_data: *const c_void,
    pub embeddings: Flag,
    pub offload_kqv: Flag,
    pub no_perf: Flag,
    pub op_offload: Flag,
    pub swa_full: Flag,
    pub kv_unified: Flag,
    pub samplers: *const c_void,
    pub n_samplers: usize,
    pub ctx_other: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QuantizeParams {
    pub nthread: i32,
    pub ftype: i32,
    pub output_tensor_type: i32,
    pub token_embedding_type: i32,
    pub allow_requantize: Flag,
    pub quantize_output_tensor: Flag,
    pub only_copy: Flag,
    pub pure: Flag,
    pub keep_split: Flag,
    pub dry_run: Flag,
    pub imatrix: *const c_void,
    pub kv_overrides: *const c_void,
    pub tt_overrides: *const c_void,
    pub prune_layers: *const i32,
    pub max_buf_size: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Batch {
    pub n_tokens: i32,
    pub token: *const i32,
    pub embd: *const f32,
    pub pos: *const i32,
    pub n_seq_id: *const i32,
    pub seq_id: *const *const i32,
    pub logits: *const i8,
}

#[repr(C)]
pub struct TypeTraits {
    pub type_name: *const c_char,
    pub blck_size: i64,
    pub blck_size_interleave: i64,
    pub type_size: usize,
    pub is_quantized: Flag,
    pub to_float: Option<unsafe extern "C" fn(*const c_void, *mut f32, i64)>,
    pub from_float_ref: Option<unsafe extern "C" fn(*const f32, *mut c_void, i64)>,
}

pub type LogCallback = unsafe extern "C" fn(level: i32, text: *const c_char, user: *mut c_void);

/// Declares the table of functions and how it is filled, so that name and signature stand in one place.
macro_rules! functions {
    ($( $library:ident { $( fn $name:ident($($arg:ty),* $(,)?) $(-> $ret:ty)?; )* } )*) => {
        /// The functions, by their C names.
        #[allow(clippy::type_complexity)]
        pub struct Functions { $( $( pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?, )* )* }
        impl Functions {
            /// # Safety
            /// The libraries must be the release whose signatures these are.
            unsafe fn find($($library: &Library),*) -> Result<Functions, libloading::Error> {
                // SAFETY: the caller promises that the symbols have these signatures.
                unsafe { Ok(Functions { $( $( $name: *$library.get(stringify!($name))?, )* )* }) }
            }
        }
    };
}

functions! {
    base {
        fn ggml_quantize_chunk(i32, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
        fn ggml_quantize_requires_imatrix(i32) -> bool;
        fn ggml_get_type_traits(i32) -> *const TypeTraits;
    }
    ggml {
        fn ggml_backend_load_all_from_path(*const c_char);
    }
    llama {
        fn llama_log_set(LogCallback, *mut c_void);
        fn llama_backend_init();
        fn llama_model_default_params() -> ModelParams;
        fn llama_context_default_params() -> ContextParams;
        fn llama_model_quantize_default_params() -> QuantizeParams;
        fn llama_model_load_from_file(*const c_char, ModelParams) -> *mut c_void;
        fn llama_model_free(*mut c_void);
        fn llama_model_get_vocab(*const c_void) -> *const c_void;
        fn llama_model_n_ctx_train(*const c_void) -> i32;
        fn llama_model_quantize(*const c_char, *const c_char, *const QuantizeParams) -> u32;
        fn llama_init_from_model(*mut c_void, ContextParams) -> *mut c_void;
        fn llama_free(*mut c_void);
        fn llama_get_memory(*const c_void) -> *mut c_void;
        fn llama_memory_clear(*mut c_void, bool);
        fn llama_decode(*mut c_void, Batch) -> i32;
        fn llama_get_logits_ith(*mut c_void, i32) -> *const f32;
        fn llama_vocab_n_tokens(*const c_void) -> i32;
        fn llama_vocab_bos(*const c_void) -> i32;
        fn llama_vocab_get_add_bos(*const c_void) -> bool;
        fn llama_vocab_is_eog(*const c_void, i32) -> bool;
        fn llama_tokenize(*const c_void, *const c_char, i32, *mut i32, i32, bool, bool) -> i32;
        fn llama_detokenize(*const c_void, *const i32, i32, *mut c_char, i32, bool, bool) -> i32;
    }
}

/// The loaded libraries with their functions.
pub struct Api {
    pub f: Functions,
    // The functions point into these; they are dropped last.
    _libraries: [Library; 3],
}

impl Api {
    /// Loads the libraries of `dir` and checks that they have the layouts of this file.
    pub fn load(dir: &Path) -> Result<Api, String> {
        let open = |name: String| {
            let path = dir.join(name);
            // SAFETY: the file is a llama.cpp library that the developer fetched; its initializers are trusted as
            // much as any program that the developer runs.
            unsafe { Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))
        };
        // In the order of their needs: each finds the one before it already loaded.
        let base = open("libggml-base.so".into())?;
        let ggml = open(format!("libggml.{RELEASE}.so"))?;
        let llama = open(format!("libllama.{RELEASE}.so"))?;
        // SAFETY: the file names carry the release whose signatures `Functions` states, and the layouts are
        // checked below before any structure is passed in.
        let f = unsafe { Functions::find(&base, &ggml, &llama) }.map_err(|e| e.to_string())?;
        let api = Api { f, _libraries: [llama, ggml, base] };
        api.check_layouts()?;
        Ok(api)
    }

    /// Compares the default parameters with those of the release: a field that moved shows up as a wrong value.
    fn check_layouts(&self) -> Result<(), String> {
        // SAFETY: the functions take nothing and return structures by value. A larger structure of another release
        // would write past the return slot, which is why the release is part of the file names.
        let (m, c, q) = unsafe {
            (
                (self.f.llama_model_default_params)(),
                (self.f.llama_context_default_params)(),
                (self.f.llama_model_quantize_default_params)(),
            )
        };
        let model = m.n_gpu_layers == -1
            && (m.split_mode, m.load_mode, m.lazy_mode, m.main_gpu) == (1, -1, 1, 0)
            && m.tensor_split.is_null()
            && m.kv_overrides.is_null()
            && [m.vocab_only, m.check_tensors, m.use_extra_bufts] == [0, 0, 1]
            && [m.no_host, m.no_alloc, m.load_mtp] == [0, 0, 0];
        let context = (c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max) == (512, 2048, 512, 1)
            && (c.n_outputs_max_per_seq, c.ctx_type, c.rope_scaling_type, c.flash_attn_type)
                == (1, 0, -1, -1)
            && (c.yarn_ext_factor, c.yarn_beta_slow, c.defrag_thold) == (-1.0, -1.0, -1.0)
            && (c.type_k, c.type_v) == (1, 1)
            && (c.cb_eval.is_null() && c.abort_callback.is_null())
            && [c.embeddings, c.offload_kqv, c.no_perf] == [0, 1, 1]
            && [c.op_offload, c.swa_full, c.kv_unified] == [1, 1, 0]
            && (c.samplers.is_null() && c.n_samplers == 0 && c.ctx_other.is_null());
        let quantize = q.nthread == 0
            && (q.output_tensor_type, q.token_embedding_type) == (TYPE_COUNT, TYPE_COUNT)
            && [q.allow_requantize, q.quantize_output_tensor, q.only_copy] == [0, 1, 0]
            && [q.pure, q.keep_split, q.dry_run] == [0, 0, 0]
            && (q.imatrix.is_null() && q.prune_layers.is_null())
            && q.max_buf_size == 8 << 30;
        let traits = self.traits(12).is_some_and(|t| {
            // SAFETY: a type's name is a string constant of the library.
            let name = unsafe { CStr::from_ptr(t.type_name) };
            name == c"q4_K"
                && t.blck_size == 256
                && t.type_size == 144
                && t.is_quantized == 1
                && t.to_float.is_some()
        });
        for (name, good) in [("model", model), ("context", context), ("quantize", quantize), ("type", traits)]
        {
            if !good {
                return Err(format!("the library's {name} parameters are not laid out as in {RELEASE}"));
            }
        }
        Ok(())
    }

    /// What the library knows about a tensor type; `None` for a number that is no type of this release.
    pub fn traits(&self, ggml_type: u32) -> Option<&TypeTraits> {
        let number = i32::try_from(ggml_type).ok().filter(|&t| t < TYPE_COUNT)?;
        // SAFETY: the number is within the library's table, whose entries live as long as the library.
        unsafe { (self.f.ggml_get_type_traits)(number).as_ref() }
            .filter(|t| t.blck_size > 0 && t.type_size > 0)
    }
}
