//! S shards: outliers, delta-coded.
//!
//! ```text
//! rows × varint   how many values the row has
//! n × varint      columns: the first of a row as it is, the others less the one before and less 1
//! n × f16         values
//! ```
//!
//! A varint has seven bits in a byte, the lowest first, and the high bit where another byte follows (LEB128). Unpacked
//! they are the planes of [`crate::Term::Sparse`], one after the other: `u32 starts[rows + 1]`, `u32 columns[n]`, values.

use super::super::unpack::corrupt;
use crate::cursor::{Cursor, Fault};

/// Bytes of the planes.
pub(super) fn planes_len(rows: u64, n: u64) -> Option<u64> {
    rows.checked_add(1)?.checked_mul(4)?.checked_add(n.checked_mul(6)?)
}

fn put(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn varint(c: &mut Cursor) -> Result<u32, Fault> {
    let mut value = 0u64;
    for shift in [0u32, 7, 14, 21, 28] {
        let byte = c.u8()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            // One way to write each number.
            let short = byte != 0 || shift == 0;
            return u32::try_from(value)
                .ok()
                .filter(|_| short)
                .ok_or_else(|| c.corrupt("a number is too long"));
        }
    }
    Err(c.corrupt("a number is too long"))
}

/// The payload of planes. `None` if they are no such planes.
pub(super) fn encode(starts: &[u32], columns: &[u32], values: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut deltas = Vec::new();
    for ends in starts.windows(2) {
        let &[from, to] = ends else { return None };
        put(&mut out, to.checked_sub(from)?);
        let mut next = 0u32;
        for &column in columns.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)? {
            put(&mut deltas, column.checked_sub(next)?);
            next = column.checked_add(1)?;
        }
    }
    let n = columns.len();
    let whole = starts.first() == Some(&0) && starts.last().is_some_and(|end| *end as usize == n);
    if !whole || values.len() != n.checked_mul(2)? {
        return None;
    }
    out.extend(deltas);
    out.extend(values);
    Some(out)
}

/// The planes of a payload: of `rows` rows of `cols` columns and `n` values.
pub(super) fn decode(bytes: &[u8], rows: u64, cols: u64, n: u64) -> Result<Vec<u8>, Fault> {
    let mut c = Cursor::new(bytes, bytes.len() as u64);
    let mut out = Vec::new();
    let len = planes_len(rows, n).and_then(|len| usize::try_from(len).ok());
    let len = len.filter(|len| out.try_reserve_exact(*len).is_ok());
    len.ok_or_else(|| Fault::Limit { tensor: None, reason: format!("no memory for {n} outliers") })?;
    out.extend(0u32.to_le_bytes());
    let (mut end, mut counts) = (0u32, Vec::new());
    for _ in 0..rows {
        let count = varint(&mut c)?;
        end = end
            .checked_add(count)
            .filter(|end| u64::from(*end) <= n)
            .ok_or_else(|| c.corrupt(format!("rows have more than the {n} values that there are")))?;
        counts.push(count);
        out.extend(end.to_le_bytes());
    }
    if u64::from(end) != n {
        return Err(c.corrupt(format!("rows have {end} values of {n}")));
    }
    for (row, count) in counts.into_iter().enumerate() {
        let mut next = 0u64;
        for _ in 0..count {
            let column = next.saturating_add(u64::from(varint(&mut c)?));
            let inside = u32::try_from(column).ok().filter(|_| column < cols);
            let inside = inside
                .ok_or_else(|| c.corrupt(format!("row {row} has a value in column {column} of {cols}")))?;
            out.extend(inside.to_le_bytes());
            next = column.saturating_add(1);
        }
    }
    out.extend(c.take(n.saturating_mul(2))?);
    if c.left() > 0 {
        return Err(corrupt("bytes follow the outliers"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(rows in prop::collection::vec(prop::collection::btree_set(0u32..70_000, 0..9), 1..20)) {
            let mut starts = vec![0u32];
            let mut columns = Vec::new();
            for row in &rows {
                columns.extend(row);
                starts.push(columns.len() as u32);
            }
            let values: Vec<u8> = (0..columns.len() * 2).map(|i| i as u8).collect();
            let payload = encode(&starts, &columns, &values).unwrap();
            let planes = decode(&payload, rows.len() as u64, 70_000, columns.len() as u64).unwrap();
            let want: Vec<u8> =
                starts.iter().chain(&columns).flat_map(|v| v.to_le_bytes()).chain(values).collect();
            prop_assert_eq!(planes, want);
        }
    }

    #[test]
    fn broken_planes_and_payloads_are_refused() {
        assert!(encode(&[0, 2], &[1, 1], &[0; 4]).is_none(), "a column twice");
        assert!(encode(&[0, 2], &[2, 1], &[0; 4]).is_none(), "columns fall");
        assert!(encode(&[0, 2, 1], &[1, 2], &[0; 4]).is_none(), "rows fall");
        assert!(encode(&[0, 1], &[1, 2], &[0; 4]).is_none(), "columns of no row");
        assert!(encode(&[0, 2], &[1, 2], &[0; 3]).is_none(), "a value is missing");
        let fine = [1, 1, 5, 0x80, 1, 9, 9, 9, 9];
        assert_eq!(decode(&fine, 2, 200, 2).unwrap().len(), 24);
        for (what, bytes, rows, cols, n) in [
            ("cut", &fine[..8], 2, 200, 2),
            ("more", &[&fine[..], &[0]].concat()[..], 2, 200, 2),
            ("too few", &fine, 2, 200, 3),
            ("too many", &fine, 2, 200, 1),
            ("beyond the row", &fine, 2, 128, 2),
            ("padded", &[1, 0x80, 0, 9, 9], 1, 8, 1),
            ("too long", &[1, 0xff, 0xff, 0xff, 0xff, 0x7f, 9, 9], 1, u64::MAX, 1),
            ("endless", &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 9, 9], 1, u64::MAX, 1),
        ] {
            assert!(matches!(decode(bytes, rows, cols, n), Err(Fault::Corrupt { .. })), "{what}");
        }
    }
}
