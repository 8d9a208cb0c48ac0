//! PyTorch's ZIP files, read strictly: what two readers could see differently is an error.
//!
//! Layout (APPNOTE.TXT of PKWARE, 4.3): entries with their local headers, the central directory, then, if numbers need
//! it or the writer likes it, the ZIP64 end record and its locator, and the end record as the last 22 bytes. Only what
//! PyTorch writes is taken: no comment, one disk, entries stored without compression (so there is nothing that could
//! unpack to more than the file has), no encryption, relative names without tricks, no name twice, no entries that
//! overlap each other or the directory.
//!
//! The pickle's checksum is compared when the file is opened, the storages' when somebody asks. PyTorch can be told not
//! to compute them (`set_crc32_options(False)`) and writes 0 then, which is taken as having none.

use super::Contents;
use super::state::{self, Place};
use crate::cursor::{Cursor, Fault};
use crate::map::Source;
use crate::{Error, shards};
use std::collections::HashMap;

const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// Sizes follow the data; names are UTF-8. All other flags change what the bytes mean.
const KNOWN_FLAGS: u16 = 1 << 3 | 1 << 11;
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_PICKLE: u64 = 256 << 20;

/// An entry's data in the file.
struct Entry {
    header: u64,
    data: u64,
    len: u64,
    crc: u32,
}

/// A checksum to compare.
pub(super) struct Checksum {
    name: String,
    offset: u64,
    len: u64,
    crc: u32,
}

impl Checksum {
    pub(super) fn verify(&self, source: &Source) -> Result<(), Error> {
        let mut hasher = crc32fast::Hasher::new();
        let mut done = 0u64;
        let mut buffer = vec![0; usize::try_from(self.len.min(1 << 20)).unwrap_or(1 << 20)];
        while done < self.len {
            let size = usize::try_from(self.len.saturating_sub(done)).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..size).unwrap_or_default();
            source.read_at(self.offset.saturating_add(done), part)?;
            hasher.update(part);
            done = done.saturating_add(size as u64);
        }
        let found = hasher.finalize();
        if found == self.crc {
            return Ok(());
        }
        let reason = format!("checksum {found:08x}, but {:08x} is written", self.crc);
        let (file, tensor) = (source.path().into(), Some(self.name.clone()));
        Err(Error::Corrupt { file, tensor, offset: Some(self.offset), reason })
    }
}

/// Reads the directory and the pickle.
pub(super) fn read(source: &Source) -> Result<Contents, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    let corrupt = |reason: String| in_file(Fault::Corrupt { tensor: None, offset: None, reason });
    let entries = directory(source)?;
    let mut pickles = entries.keys().filter_map(|name| {
        let prefix = name.strip_suffix("/data.pkl")?;
        (!prefix.contains('/')).then_some(prefix)
    });
    let (Some(prefix), None) = (pickles.next(), pickles.next()) else {
        return Err(corrupt("not one data.pkl in a folder of the archive".into()));
    };
    let get = |name: &str| entries.get(&format!("{prefix}/{name}"));
    if get("constants.pkl").is_some() {
        let reason = "a TorchScript archive".into();
        return Err(in_file(Fault::Unsupported { tensor: None, reason }));
    }
    if let Some(entry) = get("byteorder")
        && source.read_vec(entry.data, entry.len.min(16))? != b"little"
    {
        let reason = "a byte order other than little".into();
        return Err(in_file(Fault::Unsupported { tensor: None, reason }));
    }
    let pickle = get("data.pkl").ok_or_else(|| corrupt("no data.pkl".into()))?;
    if pickle.len > MAX_PICKLE {
        let reason = format!("a pickle of {} bytes; {MAX_PICKLE} are allowed", pickle.len);
        return Err(in_file(Fault::Limit { tensor: Some("data.pkl".into()), reason }));
    }
    let checksums = checksums(&entries);
    if let Some(sum) = checksums.iter().find(|sum| sum.offset == pickle.data) {
        sum.verify(source)?;
    }
    let bytes = source.read_vec(pickle.data, pickle.len)?;
    let places = |key: &str| get(&format!("data/{key}")).map(|e| Place { offset: e.data, len: e.len });
    let at = |fault: Fault| in_file(fault.shifted(pickle.data));
    let mut cursor = Cursor::new(&bytes, pickle.len);
    let parsed = super::pickle::run(&mut cursor).map_err(at)?;
    if cursor.left() > 0 {
        return Err(at(cursor.corrupt("more follows the pickle's end")));
    }
    let state = state::build(&parsed, &bytes, places).map_err(at)?;
    Ok(Contents { metadata: state.metadata, tensors: state.tensors, checksums })
}

fn checksums(entries: &HashMap<String, Entry>) -> Vec<Checksum> {
    let mut sums: Vec<Checksum> = entries
        .iter()
        .filter(|(_, e)| e.crc != 0)
        .map(|(name, e)| Checksum { name: name.clone(), offset: e.data, len: e.len, crc: e.crc })
        .collect();
    sums.sort_by_key(|sum| sum.offset);
    sums
}

/// Where the central directory is.
struct Directory {
    offset: u64,
    len: u64,
    entries: u64,
}

fn find_directory(source: &Source) -> Result<Directory, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    let corrupt = |offset: u64, reason: &str| {
        in_file(Fault::Corrupt { tensor: None, offset: Some(offset), reason: reason.into() })
    };
    let end = source.len().checked_sub(22).ok_or_else(|| corrupt(0, "too short for a ZIP file"))?;
    let tail = source.read_vec(end, 22)?;
    let found = end_record(&mut Cursor::new(&tail, 22)).map_err(|fault| in_file(fault.shifted(end)))?;
    let (mut directory, mut after) = (found, end);
    if let Some(locator) = end.checked_sub(20)
        && let Some(record) = locator_record(&source.read_vec(locator, 20)?)
    {
        // The record has 56 bytes and is just before its locator.
        if record.checked_add(56) != Some(locator) {
            return Err(corrupt(locator, "the ZIP64 end record is not where its locator says"));
        }
        let bytes = source.read_vec(record, 56)?;
        let wide =
            end64_record(&mut Cursor::new(&bytes, 56)).map_err(|fault| in_file(fault.shifted(record)))?;
        let agree = |narrow: u64, wide: u64, most: u64| narrow == wide || (narrow == most && wide >= most);
        if !(agree(directory.offset, wide.offset, u32::MAX.into())
            && agree(directory.len, wide.len, u32::MAX.into())
            && agree(directory.entries, wide.entries, u16::MAX.into()))
        {
            return Err(corrupt(record, "the two end records do not agree"));
        }
        (directory, after) = (wide, record);
    }
    if directory.offset.checked_add(directory.len) != Some(after) {
        return Err(corrupt(after, "the directory does not end where the end record begins"));
    }
    Ok(directory)
}

fn end_record(at: &mut Cursor) -> Result<Directory, Fault> {
    if at.u32()? != END {
        return Err(at.corrupt("no ZIP end record; the file is cut, or something was added"));
    }
    let (disk, first, here, entries) = (at.u16()?, at.u16()?, at.u16()?, at.u16()?);
    let (len, offset, comment) = (at.u32()?, at.u32()?, at.u16()?);
    if disk != 0 || first != 0 || here != entries || comment != 0 {
        return Err(at.corrupt("several disks, or a comment"));
    }
    Ok(Directory { offset: offset.into(), len: len.into(), entries: entries.into() })
}

fn locator_record(bytes: &[u8]) -> Option<u64> {
    let mut at = Cursor::new(bytes, bytes.len() as u64);
    if at.u32().ok()? != END64_LOCATOR {
        return None;
    }
    let (_disk, record, _disks) = (at.u32().ok()?, at.u64().ok()?, at.u32().ok()?);
    Some(record)
}

fn end64_record(at: &mut Cursor) -> Result<Directory, Fault> {
    let (signature, size) = (at.u32()?, at.u64()?);
    let (_versions, disk, first) = (at.u32()?, at.u32()?, at.u32()?);
    let (here, entries, len, offset) = (at.u64()?, at.u64()?, at.u64()?, at.u64()?);
    if signature != END64 || size != 44 || disk != 0 || first != 0 || here != entries {
        return Err(at.corrupt("a broken ZIP64 end record"));
    }
    Ok(Directory { offset, len, entries })
}

/// All entries by name, each checked against its local header.
fn directory(source: &Source) -> Result<HashMap<String, Entry>, Error> {
    let in_file = |fault: Fault| fault.in_file(source.path());
    let found = find_directory(source)?;
    if found.len > MAX_DIRECTORY {
        let reason = format!("a ZIP directory of {} bytes; {MAX_DIRECTORY} are allowed", found.len);
        return Err(in_file(Fault::Limit { tensor: None, reason }));
    }
    let bytes = source.read_vec(found.offset, found.len)?;
    let mut at = Cursor::new(&bytes, found.len);
    let mut entries = HashMap::new();
    while at.left() > 0 {
        let (name, header) = central(&mut at).map_err(|fault| in_file(fault.shifted(found.offset)))?;
        let entry =
            local(source, &name, &header, found.offset).map_err(|e| crate::opened::name_tensor(e, &name))?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(in_file(at.corrupt("two entries have this name").of(&name).shifted(found.offset)));
        }
    }
    if entries.len() as u64 != found.entries {
        return Err(in_file(at.corrupt("the end record counts other entries").shifted(found.offset)));
    }
    let mut ranges: Vec<(u64, u64, &str)> =
        entries.iter().map(|(n, e)| (e.header, e.data.saturating_add(e.len), n.as_str())).collect();
    ranges.sort_unstable();
    if let Some([_, second]) = ranges.array_windows().find(|[a, b]| a.1 > b.0) {
        let reason = "it overlaps the entry before it".into();
        return Err(in_file(Fault::Corrupt {
            tensor: Some(second.2.into()),
            offset: Some(second.0),
            reason,
        }));
    }
    Ok(entries)
}

/// What the central directory says of an entry.
struct Central {
    flags: u16,
    crc: u32,
    len: u64,
    header: u64,
}

fn central(at: &mut Cursor) -> Result<(String, Central), Fault> {
    if at.u32()? != CENTRAL {
        return Err(at.corrupt("not an entry of a ZIP directory"));
    }
    let (_made, _needed, flags, method) = (at.u16()?, at.u16()?, at.u16()?, at.u16()?);
    let (_time, crc) = (at.u32()?, at.u32()?);
    let (packed, len) = (at.u32()?, at.u32()?);
    let (name_len, extra_len, comment_len, disk) = (at.u16()?, at.u16()?, at.u16()?, at.u16()?);
    let (_internal, _external, header) = (at.u16()?, at.u32()?, at.u32()?);
    let name = entry_name(at, name_len)?;
    let extra = at.take(extra_len.into())?;
    let mut wide = [u64::from(len), u64::from(packed), u64::from(header)];
    zip64(extra, &mut wide).ok_or_else(|| at.corrupt("a broken extra field").of(&name))?;
    let [len, packed, header] = wide;
    let unsupported = |reason: String| Fault::Unsupported { tensor: Some(name.clone()), reason };
    if flags & !KNOWN_FLAGS != 0 {
        return Err(unsupported(format!("ZIP flags {flags:#06x} (encrypted or patched)")));
    }
    if method != 0 {
        return Err(unsupported(format!(
            "ZIP compression method {method}; torch.save stores without one (TorchScript does not)"
        )));
    }
    if comment_len != 0 || disk != 0 || packed != len {
        return Err(at.corrupt("a comment, another disk, or two sizes").of(&name));
    }
    Ok((name, Central { flags, crc, len, header }))
}

fn entry_name(at: &mut Cursor, len: u16) -> Result<String, Fault> {
    let name =
        std::str::from_utf8(at.take(len.into())?).map_err(|_| at.corrupt("a name that is not UTF-8"))?;
    if name.len() > 255 || !name.split('/').all(shards::is_plain_name) {
        return Err(at.corrupt("not a plain relative name").of(name));
    }
    Ok(name.to_owned())
}

/// Takes 64-bit values for those that have all bits set, in the order that the extra field has them.
fn zip64(extra: &[u8], values: &mut [u64; 3]) -> Option<()> {
    let mut at = Cursor::new(extra, extra.len() as u64);
    let mut field = None;
    while at.left() > 0 {
        let (id, len) = (at.u16().ok()?, at.u16().ok()?);
        let bytes = at.take(len.into()).ok()?;
        if id == 1 && field.replace(bytes).is_some() {
            return None;
        }
    }
    let bytes = field.unwrap_or_default();
    let mut at = Cursor::new(bytes, bytes.len() as u64);
    for value in values.iter_mut().filter(|v| **v == u64::from(u32::MAX)) {
        *value = at.u64().ok()?;
    }
    Some(())
}

/// Compares the local header and finds the data behind it, which must end before the directory.
fn local(source: &Source, name: &str, entry: &Central, directory: u64) -> Result<Entry, Error> {
    let corrupt = |reason: &str| {
        let fault =
            Fault::Corrupt { tensor: Some(name.into()), offset: Some(entry.header), reason: reason.into() };
        fault.in_file(source.path())
    };
    let fixed = source.read_vec(entry.header, 30)?;
    let fields = (|| {
        let mut at = Cursor::new(&fixed, 30);
        let (signature, _needed, flags, method) = (at.u32()?, at.u16()?, at.u16()?, at.u16()?);
        let (_time, crc, packed, len) = (at.u32()?, at.u32()?, at.u32()?, at.u32()?);
        Ok((signature, flags, method, crc, packed, len, at.u16()?, at.u16()?))
    })();
    let (signature, flags, method, crc, packed, len, name_len, extra_len) =
        fields.map_err(|fault: Fault| fault.in_file(source.path()))?;
    if signature != LOCAL || flags != entry.flags || method != 0 {
        return Err(corrupt("its local header is none, or not the directory's"));
    }
    let names = entry.header.saturating_add(30);
    if usize::from(name_len) != name.len() || source.read_vec(names, name_len.into())? != name.as_bytes() {
        return Err(corrupt("its local header has another name"));
    }
    let agree = |narrow: u32, wide: u64| u64::from(narrow) == wide || narrow == u32::MAX;
    let later = flags & 1 << 3 != 0;
    let same = crc == entry.crc && agree(packed, entry.len) && agree(len, entry.len);
    if !(same || (later && crc == 0 && packed == 0 && len == 0)) {
        return Err(corrupt("its local header has another size or checksum"));
    }
    let data = names.saturating_add(name_len.into()).saturating_add(extra_len.into());
    if data.checked_add(entry.len).is_none_or(|end| end > directory) {
        return Err(corrupt("its data goes past the directory"));
    }
    Ok(Entry { header: entry.header, data, len: entry.len, crc: entry.crc })
}
