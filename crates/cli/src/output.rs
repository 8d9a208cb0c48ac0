//! What goes to stdout, and how sizes and tables are shown.

use serde_json::Value as Json;
use std::fmt;
use std::io::{ErrorKind, Write};

/// Whoever read our stdout does no longer.
#[derive(Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for Closed {}

/// Writes to stdout and flushes; a closed pipe is the error [`Closed`].
pub fn write(text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(e) => Err(anyhow::Error::new(e).context("stdout")),
    }
}

/// Writes a line to stdout.
pub fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    write(format!("{text}\n"))
}

/// Writes JSON to stdout, as one document.
pub fn json(value: &Json) -> anyhow::Result<()> {
    line(format_args!("{value:#}"))
}

/// Bytes as people read them.
pub fn bytes(n: u64) -> String {
    const UNITS: &[&str] = &["KiB", "MiB", "GiB", "TiB"];
    let mut size = n as f64;
    let mut shown = format!("{n} B");
    for unit in UNITS {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        shown = format!("{size:.2} {unit}");
    }
    shown
}

/// A count as people read it.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// Bits of each of `values` in `bytes`.
pub fn bits_per_weight(bytes: u64, values: u64) -> f64 {
    if values == 0 { 0.0 } else { bytes as f64 * 8.0 / values as f64 }
}

/// Lines of cells, every column as wide as its widest cell. `right` says which columns hold numbers.
pub fn table(head: &[&str], right: &[bool], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|&h| h.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(right) {
            let cell = crate::error::one_line(cell);
            line += &if right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// A size such as `2GB` or `500MiB`: powers of 1,000 as Hugging Face counts, of 1,024 with an `i`.
pub fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "a number and a unit, such as 2GB".to_owned())?;
    let unit = unit.trim().to_ascii_uppercase();
    let factor = match unit.strip_suffix('B').unwrap_or(&unit) {
        "" => 1,
        "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "KI" => 1 << 10,
        "MI" => 1 << 20,
        "GI" => 1 << 30,
        _ => return Err(format!("{unit}: units are K, M, G, KiB, MiB, GiB")),
    };
    number.checked_mul(factor).filter(|&n| n > 0).ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(5 << 30), "5.00 GiB");
        assert_eq!(count(134_515_008), "134.5 M");
    }

    #[test]
    fn tables_are_straight_and_tame() {
        let rows = vec![vec!["a\x1b[2J".into(), "1".into()], vec!["bcdefghijk".into(), "234".into()]];
        let shown = table(&["name", "n"], &[false, true], &rows);
        assert_eq!(shown, "name          n\na [2J         1\nbcdefghijk  234\n");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        assert_eq!(size("500M"), Ok(500_000_000));
        assert_eq!(size("4GiB"), Ok(4 << 30));
        assert_eq!(size("17"), Ok(17));
        for bad in ["", "GB", "0", "-1", "1.5G", "2X", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
