//! Version 2: a whole model by GGUF's names, in extents that are read and checked as a whole.
//!
//! Little-endian, without padding but what is said:
//!
//! ```text
//! header, 64 bytes    "1FSQ", version, sizes; XXH3-64 of the section, XXH3-64 of the header
//! section             metadata; types by name; groups; tensors; extents
//! zeros to a multiple of 4,096
//! extents             each at a multiple of 4,096, in the section's order, to the file's end
//! ```
//!
//! A *group* is what is needed together: a layer, a layer's experts, or a tensor on its own. It has one extent, experts
//! one for each expert; tensors lie in an extent at multiples of 64, and a tensor of experts has its share in each,
//! along its first dimension. An extent may be an LZ4 or a zstd frame, and has an XXH3-64 of its bytes in the file.
//! A tensor may be a sum of others, which are called planes then.
//!
//! Every offset follows from the sizes before it. They are in the file all the same, for readers that want one tensor,
//! and must be those: so nothing can overlap and no two files hold the same.
//!
//! **What is checked when.** The header and the section when the file is opened, before anything of them is used or
//! allocated. An extent when its first byte is asked for by [`Checkpoint::bytes`], [`Checkpoint::slice`] or
//! [`Checkpoint::read`] (once: XXH3 takes half a second for a gigabyte; a compressed one each time it is unpacked), by
//! [`Checkpoint::unpack`], and all of them by [`Checkpoint::verify_checksums`], which also looks at the zeros between
//! them. Who reads the file directly, where [`Checkpoint::locate`] says, checks nothing.

mod format;
mod pack;
mod read;
mod write;

#[allow(unused_imports, reason = "for the documentation")]
use crate::Checkpoint;
use format::{HEADER, Layout};
pub(super) use read::open;
pub(super) use write::create;

/// Makes the checksums of a file in memory right, as far as its fields can be followed.
pub(super) fn seal(bytes: &mut [u8]) -> Option<()> {
    let len = bytes.len() as u64;
    let section = u64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?);
    let end = usize::try_from(HEADER.checked_add(section)?).ok()?;
    bytes.get(..end)?;
    let range = usize::try_from(HEADER).ok()?..end;
    if let Ok(mut layout) = Layout::decode(bytes.get(range.clone())?, len) {
        for extent in &mut layout.extents {
            let from = usize::try_from(extent.offset).ok()?;
            let stored = bytes.get(from..)?.get(..usize::try_from(extent.stored).ok()?)?;
            extent.sum = format::xxh3(stored);
        }
        let sealed = layout.encode();
        // The same section but for the checksums.
        if sealed.len() == range.len() {
            bytes.get_mut(range.clone())?.copy_from_slice(&sealed);
        }
    }
    let header = format::header(bytes.get(range)?, len);
    let sized = header.len();
    let flags: [u8; 8] = bytes.get(8..16)?.try_into().ok()?;
    let reserved: [u8; 16] = bytes.get(40..56)?.try_into().ok()?;
    bytes.get_mut(..sized)?.copy_from_slice(&header);
    bytes.get_mut(8..16)?.copy_from_slice(&flags);
    bytes.get_mut(40..56)?.copy_from_slice(&reserved);
    let sum = format::xxh3(bytes.get(..56)?).to_le_bytes();
    bytes.get_mut(56..64)?.copy_from_slice(&sum);
    Some(())
}
