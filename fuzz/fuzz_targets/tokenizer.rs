//! Fuzzes `fonio_text::fuzzing::tokenizer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(fonio_text::fuzzing::tokenizer(bytes)));
