//! Checked little-endian reading from the first bytes of a file.

/// What a header parser found wrong. Becomes a [`crate::Error`] when the file's name is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The bytes given end too early; the file is longer. At least so many are needed.
    Short(u64),
    /// See [`crate::Error::Corrupt`].
    Corrupt { tensor: Option<String>, offset: Option<u64>, reason: String },
    /// See [`crate::Error::Unsupported`].
    Unsupported { tensor: Option<String>, reason: String },
    /// See [`crate::Error::Limit`].
    Limit { tensor: Option<String>, reason: String },
}

impl Fault {
    /// Names the key or tensor, unless one is named.
    pub(crate) fn of(mut self, name: &str) -> Fault {
        match &mut self {
            Fault::Corrupt { tensor, .. }
            | Fault::Unsupported { tensor, .. }
            | Fault::Limit { tensor, .. } => {
                tensor.get_or_insert_with(|| name.to_owned());
            }
            Fault::Short(_) => {}
        }
        self
    }

    /// The same, `base` bytes further back in the file.
    pub(crate) fn shifted(mut self, base: u64) -> Fault {
        if let Fault::Corrupt { offset: Some(offset), .. } = &mut self {
            *offset = offset.saturating_add(base);
        }
        self
    }

    /// The error, now that the file is known.
    pub(crate) fn in_file(self, file: &std::path::Path) -> crate::Error {
        let file = file.to_path_buf();
        match self {
            Fault::Short(need) => {
                let reason = format!("at least {need} bytes are needed");
                crate::Error::Corrupt { file, tensor: None, offset: None, reason }
            }
            Fault::Corrupt { tensor, offset, reason } => {
                crate::Error::Corrupt { file, tensor, offset, reason }
            }
            Fault::Unsupported { tensor, reason } => crate::Error::Unsupported { file, tensor, reason },
            Fault::Limit { tensor, reason } => crate::Error::Limit { file, tensor, reason },
        }
    }
}

/// Reads on from a place in `bytes`, which are the first ones of a file of `file_len` bytes.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_len: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], file_len: u64) -> Self {
        Cursor { bytes, at: 0, file_len: file_len.max(bytes.len() as u64) }
    }

    /// Where the next byte is in the file.
    pub(crate) fn at(&self) -> u64 {
        self.at as u64
    }

    /// How many bytes of the file follow.
    pub(crate) fn left(&self) -> u64 {
        self.file_len.saturating_sub(self.at())
    }

    /// All bytes given, from the file's first on.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many of the bytes given follow.
    pub(crate) fn available(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// Length of the whole file.
    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Whether `len` more bytes are there, without taking them.
    pub(crate) fn need(&self, len: u64) -> Result<(), Fault> {
        self.clone().take(len).map(drop)
    }

    /// The error that the file is broken here.
    pub(crate) fn corrupt(&self, reason: impl Into<String>) -> Fault {
        Fault::Corrupt { tensor: None, offset: Some(self.at()), reason: reason.into() }
    }

    /// The next `len` bytes. Beyond the file's end that is a corrupt file; beyond the bytes given, more are asked
    /// for. Nothing is allocated.
    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        if len > self.left() {
            let left = self.left();
            return Err(self.corrupt(format!("{len} bytes should follow, but the file ends after {left}")));
        }
        let end = self.at().saturating_add(len);
        let taken = usize::try_from(end).ok().and_then(|end| Some((self.bytes.get(self.at..end)?, end)));
        let (taken, end) = taken.ok_or(Fault::Short(end))?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }
}

macro_rules! numbers {
    ($($name:ident)*) => {
        impl Cursor<'_> {
            $(pub(crate) fn $name(&mut self) -> Result<$name, Fault> {
                Ok($name::from_le_bytes(self.array()?))
            })*
        }
    };
}
numbers! { u8 i8 u16 i16 u32 i32 u64 i64 f32 f64 }
