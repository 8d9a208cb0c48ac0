//! Sessions as bytes, so that a long prompt is computed once.
//!
//! Little-endian: `fonioses`, version (u32), the model's fingerprint (u32), number of tokens (u64), the tokens (u32
//! each), number of logits (u64), the logits (f32 each), the cache's bytes, and the CRC-32 of everything before it.
//! The fingerprint covers the spec, the types of the cache, the names, types and shapes of all tensors, and the values
//! of the last norm: a session does not continue on another model.

use crate::{Engine, Error, Session};
use crc32fast::Hasher;

const MAGIC: &[u8; 8] = b"fonioses";
const VERSION: u32 = 1;

impl Session<'_> {
    /// The tokens so far and what the model keeps of them.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(fingerprint(self.engine())?.to_le_bytes());
        out.extend((self.tokens.len() as u64).to_le_bytes());
        out.extend(self.tokens.iter().flat_map(|t| t.to_le_bytes()));
        out.extend((self.logits.len() as u64).to_le_bytes());
        out.extend(self.logits.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(self.cache.save());
        let sum = crc32fast::hash(&out);
        out.extend(sum.to_le_bytes());
        Ok(out)
    }

    /// Becomes the session that [`Session::save`] made bytes of, on the same model. On an error the session is empty.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.truncate(0);
        let bad = |reason: &str| Error::Input(format!("this is no saved session of this model: {reason}"));
        let body = bytes.len().checked_sub(4).ok_or_else(|| bad("it is too short"))?;
        let (body, sum) = bytes.split_at(body);
        let mut rest = body;
        if take::<8>(&mut rest) != Some(*MAGIC) {
            return Err(bad("it does not begin as one"));
        }
        let version = take(&mut rest).map(u32::from_le_bytes);
        if version != Some(VERSION) {
            return Err(bad(&format!("its version is {} and not {VERSION}", version.unwrap_or(0))));
        }
        if sum != crc32fast::hash(body).to_le_bytes() {
            return Err(bad("its checksum is wrong"));
        }
        if take(&mut rest).map(u32::from_le_bytes) != Some(fingerprint(self.engine())?) {
            return Err(bad("it was made with another model or other cache types"));
        }
        let tokens = words(&mut rest).ok_or_else(|| bad("it is too short"))?;
        let logits = words(&mut rest).ok_or_else(|| bad("it is too short"))?;
        let vocab = self.engine().spec().vocab_size;
        if logits.len() != vocab && !logits.is_empty() {
            return Err(bad(&format!("it has {} logits for a vocabulary of {vocab}", logits.len())));
        }
        self.cache.restore(tokens.len(), rest)?;
        self.tokens = tokens;
        self.logits = logits.into_iter().map(f32::from_bits).collect();
        Ok(())
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (now, later) = rest.split_first_chunk()?;
    *rest = later;
    Some(*now)
}

/// A count and as many words of four bytes.
fn words(rest: &mut &[u8]) -> Option<Vec<u32>> {
    let n = usize::try_from(u64::from_le_bytes(take(rest)?)).ok()?;
    let (now, later) = rest.split_at_checked(n.checked_mul(4)?)?;
    *rest = later;
    Some(now.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

fn fingerprint(engine: &Engine) -> Result<u32, Error> {
    let mut hasher = Hasher::new();
    let (checkpoint, cache) = (engine.source().checkpoint(), engine.options().cache);
    hasher.update(format!("{:?} {} {}", engine.spec(), cache.keys, cache.values).as_bytes());
    for tensor in checkpoint.tensors() {
        hasher.update(format!("{} {} {:?}", tensor.name, tensor.dtype, tensor.shape).as_bytes());
    }
    if let Some(norm) = checkpoint.find("output_norm.weight") {
        hasher.update(&checkpoint.bytes(norm)?);
    }
    Ok(hasher.finalize())
}
