//! Fuzzes `fonio_checkpoint::fuzzing::cawsf_sealed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(fonio_checkpoint::fuzzing::cawsf_sealed(bytes)));
