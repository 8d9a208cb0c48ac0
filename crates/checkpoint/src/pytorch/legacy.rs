//! PyTorch's files before 1.6: five pickles, then the storages.

use super::Contents;
use super::pickle::{self, Parsed, V};
use super::state::{self, Place};
use crate::Error;
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use std::collections::HashMap;

/// 0x1950a86a20f9469cfc6c, as a pickle has it.
pub(super) const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;
const FIRST_READ: u64 = 1 << 20;
const MAX_HEADER: u64 = 256 << 20;

/// A pickle whose beginning has the magic number.
pub(super) fn sniff(first: &[u8]) -> bool {
    first.starts_with(b"\x80") && first.get(..64).unwrap_or(first).windows(10).any(|w| w == MAGIC)
}

/// Reads as much of the file as the pickles turn out to need.
pub(super) fn read(source: &Source) -> Result<Contents, Error> {
    let mut len = FIRST_READ.min(source.len());
    loop {
        let bytes = source.read_vec(0, len)?;
        let mut cursor = Cursor::new(&bytes, source.len());
        let need = match parse(&mut cursor) {
            Ok((object, keys)) => {
                let begin = cursor.at();
                return build(source, &bytes, &object, &keys, begin);
            }
            Err(Fault::Short(need)) => need,
            Err(fault) => return Err(fault.in_file(source.path())),
        };
        if need > MAX_HEADER {
            let reason = format!("pickles of more than {MAX_HEADER} bytes");
            return Err(Fault::Limit { tensor: None, reason }.in_file(source.path()));
        }
        len = need.max(len.saturating_mul(8)).min(MAX_HEADER).min(source.len());
    }
}

/// The object and the storages' keys; the cursor is then at the first storage.
fn parse(at: &mut Cursor) -> Result<(Parsed, Vec<String>), Fault> {
    if at.left() == 0 || at.clone().u8()? != 0x80 {
        return Err(Fault::Unsupported {
            tensor: None,
            reason: "neither a ZIP file nor a pickle of PyTorch".into(),
        });
    }
    if pickle::run(at)?.root != V::Magic {
        return Err(Fault::Unsupported {
            tensor: None,
            reason: "a pickle, but not one of torch.save".into(),
        });
    }
    match pickle::run(at)?.root {
        V::Int(PROTOCOL) => {}
        other => return Err(Fault::Unsupported { tensor: None, reason: format!("protocol {other:?}") }),
    }
    let system = pickle::run(at)?;
    let bytes = at.bytes();
    if let Some(V::Bool(little)) = system.lookup(&system.root, "little_endian", bytes)
        && !little
    {
        return Err(Fault::Unsupported { tensor: None, reason: "a byte order other than little".into() });
    }
    let object = pickle::run(at)?;
    let list = pickle::run(at)?;
    let bytes = at.bytes();
    let keys = list.items(&list.root).ok_or_else(|| at.corrupt("the storages' keys are no list"))?;
    let keys = keys.iter().map(|key| list.text(key, bytes).map(str::to_owned)).collect::<Option<Vec<_>>>();
    Ok((object, keys.ok_or_else(|| at.corrupt("a storage's key is no text"))?))
}

/// Finds each storage, one after the other up to the end of the file.
fn build(
    source: &Source,
    bytes: &[u8],
    object: &Parsed,
    keys: &[String],
    mut at: u64,
) -> Result<Contents, Error> {
    let corrupt = |key: &str, offset: u64, reason: &str| {
        Fault::Corrupt { tensor: Some(key.into()), offset: Some(offset), reason: reason.into() }
            .in_file(source.path())
    };
    let items: HashMap<&str, u64> =
        object.storages.iter().filter_map(|s| Some((object.text(&s.key, bytes)?, s.item()))).collect();
    let mut places = HashMap::new();
    for key in keys {
        let item = items.get(key.as_str());
        let item =
            item.ok_or_else(|| corrupt(key, at, "a storage that no tensor uses: its type is unknown"))?;
        let mut count = [0; 8];
        source.read_at(at, &mut count)?;
        let count = u64::from_le_bytes(count);
        let offset = at.saturating_add(8);
        let len = count.checked_mul(*item).filter(|len| *len <= source.len().saturating_sub(offset));
        let len = len.ok_or_else(|| corrupt(key, at, "the storage goes past the end of the file"))?;
        if places.insert(key.as_str(), Place { offset, len }).is_some() {
            return Err(corrupt(key, at, "there are two storages of this key"));
        }
        at = offset.saturating_add(len);
    }
    if at != source.len() {
        return Err(corrupt("", at, "more follows the last storage"));
    }
    let find = |key: &str| places.get(key).map(|p| Place { offset: p.offset, len: p.len });
    let state = state::build(object, bytes, find).map_err(|fault| fault.in_file(source.path()))?;
    Ok(Contents { metadata: state.metadata, tensors: state.tensors, checksums: Vec::new() })
}
