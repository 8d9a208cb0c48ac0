//! Checkpoints that are quantized already: every method against packers of their own, hostile files, memory.

mod hostile;
mod memory;
mod pack;
mod reference;
mod values;
