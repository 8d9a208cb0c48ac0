//! A pickle machine that runs nothing.
//!
//! It knows the opcodes of protocols 2 to 5 that dictionaries of tensors need, and a closed list of names
//! ([`Global`]). Calling one of them builds plain data here; every other opcode or name is an error that names it.
//! (Python's `pickletools` describes the opcodes.)
//!
//! Values live in one list and refer to each other by number, so that sharing costs nothing and cycles cannot recurse.
//! Memory is rationed: a pickle may use [`RATION`] times its own size, which real ones stay far below.

use crate::cursor::{Cursor, Fault};
use fonio_codec::DType;

/// Bytes of memory for each byte of the pickle, and for a start.
const RATION: u64 = 16;
const FIRST_RATION: u64 = 256 << 10;
/// Real pickles have some thousand values on the stack, as they are written in batches of a thousand.
const MAX_STACK: usize = 1 << 16;
const MAX_GLOBAL: usize = 256;

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum V {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text: its bytes in the pickle, checked to be UTF-8.
    Text {
        start: u32,
        len: u32,
    },
    /// [`super::legacy::MAGIC`].
    Magic,
    /// Bytes or a large integer: nothing that a tensor needs.
    Other,
    Global(Global),
    /// Index into [`Parsed::nodes`].
    Node(u32),
    /// Index into [`Parsed::storages`].
    Storage(u32),
    /// Index into [`Parsed::tensors`].
    Tensor(u32),
}

/// A list, tuple or dictionary.
pub(super) enum Node {
    Items(Vec<V>),
    Dict(Vec<(V, V)>),
}

/// The names that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorV2,
    RebuildParameter,
    /// A storage class: index into [`STORAGES`].
    Storage(u8),
}

/// Storage classes and the type of their values.
const STORAGES: &[(&str, &str)] = &[
    ("DoubleStorage", "F64"),
    ("FloatStorage", "F32"),
    ("HalfStorage", "F16"),
    ("BFloat16Storage", "BF16"),
    ("LongStorage", "I64"),
    ("IntStorage", "I32"),
    ("ShortStorage", "I16"),
    ("CharStorage", "I8"),
    ("ByteStorage", "U8"),
    ("BoolStorage", "BOOL"),
];

/// A storage that the pickle refers to.
pub(super) struct Storage {
    pub(super) dtype: DType,
    pub(super) key: V,
    /// Number of values.
    pub(super) len: u64,
}

impl Storage {
    /// Bytes of a value.
    pub(super) fn item(&self) -> u64 {
        self.dtype.block_bytes() as u64
    }
}

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
pub(super) struct Tensor {
    pub(super) storage: u32,
    pub(super) first: u64,
    /// Length and stride of each dimension, in values.
    pub(super) dims: Vec<(u64, u64)>,
}

/// What a pickle describes.
pub(super) struct Parsed {
    pub(super) root: V,
    pub(super) nodes: Vec<Node>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
    /// Memory that is left of the ration.
    pub(super) ration: u64,
}

impl Parsed {
    fn node(&self, value: &V) -> Option<&Node> {
        match value {
            V::Node(at) => self.nodes.get(usize::try_from(*at).ok()?),
            _ => None,
        }
    }

    /// The values of a list or tuple.
    pub(super) fn items(&self, value: &V) -> Option<&[V]> {
        match self.node(value)? {
            Node::Items(items) => Some(items),
            Node::Dict(_) => None,
        }
    }

    /// The pairs of a dictionary.
    pub(super) fn pairs(&self, value: &V) -> Option<&[(V, V)]> {
        match self.node(value)? {
            Node::Items(_) => None,
            Node::Dict(pairs) => Some(pairs),
        }
    }

    /// A text; `bytes` is the pickle.
    pub(super) fn text<'a>(&self, value: &V, bytes: &'a [u8]) -> Option<&'a str> {
        text(value, bytes)
    }

    /// The value of a key of a dictionary.
    pub(super) fn lookup(&self, dict: &V, key: &str, bytes: &[u8]) -> Option<V> {
        let pairs = self.pairs(dict)?;
        // The last one counts, as in Python.
        pairs.iter().rev().find(|(k, _)| text(k, bytes) == Some(key)).map(|(_, v)| *v)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), Fault> {
        charge(&mut self.ration, bytes)
    }
}

/// Takes memory out of a ration.
pub(super) fn charge(ration: &mut u64, bytes: u64) -> Result<(), Fault> {
    *ration = ration.checked_sub(bytes).ok_or_else(|| Fault::Limit {
        tensor: None,
        reason: format!("the pickle needs more than {RATION} times its size of memory"),
    })?;
    Ok(())
}

fn text<'a>(value: &V, bytes: &'a [u8]) -> Option<&'a str> {
    let V::Text { start, len } = value else { return None };
    let start = usize::try_from(*start).ok()?;
    let end = start.checked_add(usize::try_from(*len).ok()?)?;
    std::str::from_utf8(bytes.get(start..end)?).ok()
}

/// Reads one pickle, up to its end mark.
pub(super) fn run(at: &mut Cursor) -> Result<Parsed, Fault> {
    let ration = (at.available() as u64).saturating_mul(RATION).saturating_add(FIRST_RATION);
    let parsed =
        Parsed { root: V::None, nodes: Vec::new(), storages: Vec::new(), tensors: Vec::new(), ration };
    let mut machine = Machine { parsed, stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    loop {
        let opcode = at.u8()?;
        if opcode == b'.' {
            break;
        }
        machine.step(opcode, at)?;
        if machine.stack.len().max(machine.marks.len()) > MAX_STACK {
            let reason = format!("a pickle with more than {MAX_STACK} values on its stack");
            return Err(Fault::Limit { tensor: None, reason });
        }
    }
    match machine.stack.as_slice() {
        [root] if machine.marks.is_empty() => machine.parsed.root = *root,
        _ => return Err(at.corrupt("the pickle ends with other than one value")),
    }
    Ok(machine.parsed)
}

struct Machine {
    parsed: Parsed,
    stack: Vec<V>,
    /// Lengths of the stack at the marks.
    marks: Vec<usize>,
    memo: Vec<V>,
}

impl Machine {
    /// Opcodes for plain values, names and calls; the others are [`Machine::collect`]'s.
    fn step(&mut self, opcode: u8, at: &mut Cursor) -> Result<(), Fault> {
        match opcode {
            0x80 => match at.u8()? {
                2..=5 => {}
                v => return Err(Fault::Unsupported { tensor: None, reason: format!("pickle protocol {v}") }),
            },
            0x95 => {
                let len = at.u64()?;
                if len > at.left() {
                    return Err(at.corrupt("a frame goes past the end"));
                }
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop(at)?),
            b'1' => drop(self.pop_mark(at)?),
            b'N' => self.stack.push(V::None),
            0x88 => self.stack.push(V::Bool(true)),
            0x89 => self.stack.push(V::Bool(false)),
            b'J' => self.stack.push(V::Int(at.i32()?.into())),
            b'K' => self.stack.push(V::Int(at.u8()?.into())),
            b'M' => self.stack.push(V::Int(at.u16()?.into())),
            0x8a => {
                let len = at.u8()?;
                self.stack.push(long(at.take(len.into())?));
            }
            b'G' => {
                let float = f64::from_bits(at.u64()?.swap_bytes());
                self.stack.push(V::Float(float));
            }
            b'X' | b'T' | 0x8c | b'U' | 0x8d | b'B' | b'C' | 0x8e => self.string(opcode, at)?,
            b'c' => {
                let (module, name) = (line(at)?, line(at)?);
                self.stack.push(V::Global(global(module, name)?));
            }
            0x93 => {
                let (name, module) = (self.pop(at)?, self.pop(at)?);
                let (module, name) = (text(&module, at.bytes()), text(&name, at.bytes()));
                let (module, name) = module.zip(name).ok_or_else(|| at.corrupt("a global without a name"))?;
                self.stack.push(V::Global(global(module, name)?));
            }
            b'R' => {
                let (arguments, function) = (self.pop(at)?, self.pop(at)?);
                self.call(function, arguments, at)?;
            }
            b'b' => {
                // Attributes of a dictionary (`_metadata` of state dictionaries: versions of layers).
                let _state = self.pop(at)?;
                let object = self.stack.last().copied().unwrap_or(V::None);
                if self.parsed.pairs(&object).is_none() {
                    return Err(unsupported("attributes of something other than a dictionary"));
                }
            }
            b'Q' => {
                let id = self.pop(at)?;
                self.storage(id, at)?;
            }
            _ => return self.collect(opcode, at),
        }
        Ok(())
    }

    /// Opcodes that build lists and dictionaries, and those that remember values.
    fn collect(&mut self, opcode: u8, at: &mut Cursor) -> Result<(), Fault> {
        match opcode {
            b')' => self.push_items(Vec::new())?,
            b']' => self.push_items(Vec::new())?,
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(opcode.saturating_sub(0x84)));
                let from = from.filter(|&n| n >= self.floor()).ok_or_else(|| underflow(at))?;
                let items = self.stack.split_off(from);
                self.push_items(items)?;
            }
            b't' | b'l' => {
                let items = self.pop_mark(at)?;
                self.push_items(items)?;
            }
            b'}' => self.push_dict(Vec::new())?,
            b'd' => {
                let pairs = pairs(self.pop_mark(at)?, at)?;
                self.push_dict(pairs)?;
            }
            b'a' => {
                let item = self.pop(at)?;
                self.extend_items(vec![item], at)?;
            }
            b'e' => {
                let items = self.pop_mark(at)?;
                self.extend_items(items, at)?;
            }
            b's' => {
                let (value, key) = (self.pop(at)?, self.pop(at)?);
                self.extend_dict(vec![(key, value)], at)?;
            }
            b'u' => {
                let pairs = pairs(self.pop_mark(at)?, at)?;
                self.extend_dict(pairs, at)?;
            }
            b'h' => {
                let index = at.u8()?;
                self.get(index.into(), at)?;
            }
            b'j' => {
                let index = at.u32()?;
                self.get(index, at)?;
            }
            b'q' => {
                let index = at.u8()?;
                self.put(index.into(), at)?;
            }
            b'r' => {
                let index = at.u32()?;
                self.put(index, at)?;
            }
            0x94 => {
                let next = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                self.put(next, at)?;
            }
            _ => return Err(unsupported(format!("pickle opcode {:?} ({opcode:#04x})", char::from(opcode)))),
        }
        Ok(())
    }

    /// What is below belongs to somebody before the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self, at: &Cursor) -> Result<V, Fault> {
        if self.stack.len() <= self.floor() {
            return Err(underflow(at));
        }
        self.stack.pop().ok_or_else(|| underflow(at))
    }

    fn pop_mark(&mut self, at: &Cursor) -> Result<Vec<V>, Fault> {
        let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(|| at.corrupt("no mark on the pickle's stack"))?))
    }

    fn push_node(&mut self, node: Node, len: usize, each: u64) -> Result<(), Fault> {
        self.parsed.charge((len as u64).saturating_mul(each).saturating_add(64))?;
        self.stack.push(V::Node(index(self.parsed.nodes.len())));
        self.parsed.nodes.push(node);
        Ok(())
    }

    fn push_items(&mut self, items: Vec<V>) -> Result<(), Fault> {
        let len = items.len();
        self.push_node(Node::Items(items), len, 16)
    }

    fn push_dict(&mut self, pairs: Vec<(V, V)>) -> Result<(), Fault> {
        let len = pairs.len();
        self.push_node(Node::Dict(pairs), len, 32)
    }

    fn top_node(&mut self) -> Option<&mut Node> {
        match self.stack.get(self.floor()..)?.last()? {
            V::Node(at) => self.parsed.nodes.get_mut(usize::try_from(*at).ok()?),
            _ => None,
        }
    }

    fn extend_items(&mut self, items: Vec<V>, at: &Cursor) -> Result<(), Fault> {
        self.parsed.charge((items.len() as u64).saturating_mul(16))?;
        match self.top_node() {
            Some(Node::Items(list)) => list.extend(items),
            _ => return Err(at.corrupt("values are added to something other than a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, pairs: Vec<(V, V)>, at: &Cursor) -> Result<(), Fault> {
        self.parsed.charge((pairs.len() as u64).saturating_mul(32))?;
        match self.top_node() {
            Some(Node::Dict(dict)) => dict.extend(pairs),
            _ => return Err(at.corrupt("keys are added to something other than a dictionary")),
        }
        Ok(())
    }

    fn get(&mut self, index: u32, at: &Cursor) -> Result<(), Fault> {
        let value = usize::try_from(index).ok().and_then(|i| self.memo.get(i)).copied();
        self.stack.push(value.ok_or_else(|| at.corrupt(format!("nothing was remembered as {index}")))?);
        Ok(())
    }

    /// Python numbers what it remembers one after the other.
    fn put(&mut self, index: u32, at: &Cursor) -> Result<(), Fault> {
        let value = *self.stack.last().ok_or_else(|| underflow(at))?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if index == self.memo.len() {
            self.parsed.charge(16)?;
            self.memo.push(value);
        } else if let Some(place) = self.memo.get_mut(index) {
            *place = value;
        } else {
            return Err(
                at.corrupt(format!("value {index} is remembered, but {} would be next", self.memo.len()))
            );
        }
        Ok(())
    }

    fn string(&mut self, opcode: u8, at: &mut Cursor) -> Result<(), Fault> {
        let len = match opcode {
            b'X' | b'T' | b'B' => at.u32()?.into(),
            0x8d | 0x8e => at.u64()?,
            _ => at.u8()?.into(),
        };
        let start = at.at();
        let bytes = at.take(len)?;
        let value = match opcode {
            b'B' | b'C' | 0x8e => V::Other,
            _ if std::str::from_utf8(bytes).is_err() => return Err(at.corrupt("text is not UTF-8")),
            _ => match (u32::try_from(start), u32::try_from(len)) {
                (Ok(start), Ok(len)) => V::Text { start, len },
                _ => return Err(Fault::Limit { tensor: None, reason: "a pickle of 4 GiB".into() }),
            },
        };
        self.stack.push(value);
        Ok(())
    }

    /// A persistent id: `("storage", class, key, location, count)`, in legacy files with a view after it.
    fn storage(&mut self, id: V, at: &Cursor) -> Result<(), Fault> {
        let broken = || at.corrupt("a reference to something other than a storage");
        let (tag, class, key, len, view) = match self.parsed.items(&id).ok_or_else(broken)? {
            [tag, V::Global(Global::Storage(class)), key, _, V::Int(len)] => {
                (*tag, *class, *key, *len, V::None)
            }
            [tag, V::Global(Global::Storage(class)), key, _, V::Int(len), view] => {
                (*tag, *class, *key, *len, *view)
            }
            _ => return Err(broken()),
        };
        if text(&tag, at.bytes()) != Some("storage") {
            return Err(broken());
        }
        if view != V::None {
            return Err(unsupported("a view of a storage, as PyTorch before 0.4 wrote them"));
        }
        let len = u64::try_from(len).map_err(|_| at.corrupt(format!("a storage of {len} values")))?;
        let (_, name) = STORAGES.get(usize::from(class)).ok_or_else(broken)?;
        let dtype = DType::named(name).ok_or_else(broken)?;
        text(&key, at.bytes()).ok_or_else(broken)?;
        self.parsed.charge(64)?;
        self.stack.push(V::Storage(index(self.parsed.storages.len())));
        self.parsed.storages.push(Storage { dtype, key, len });
        Ok(())
    }

    fn call(&mut self, function: V, arguments: V, at: &Cursor) -> Result<(), Fault> {
        let V::Global(function) = function else {
            return Err(unsupported("a call of something other than a global"));
        };
        let arguments = self.parsed.items(&arguments).ok_or_else(|| at.corrupt("arguments are no tuple"))?;
        let value = match (function, arguments) {
            (Global::OrderedDict, []) => return self.push_dict(Vec::new()),
            (Global::OrderedDict, [list]) => {
                let pair = |item: &V| match self.parsed.items(item)? {
                    [key, value] => Some((*key, *value)),
                    _ => None,
                };
                let list = self.parsed.items(list).and_then(|items| items.iter().map(pair).collect());
                return self.push_dict(
                    list.ok_or_else(|| at.corrupt("a dictionary of something other than pairs"))?,
                );
            }
            (Global::RebuildParameter, [tensor @ V::Tensor(_), ..]) => *tensor,
            (Global::RebuildTensor, [V::Storage(storage), first, size, stride])
            | (Global::RebuildTensorV2, [V::Storage(storage), first, size, stride, _, _]) => {
                let tensor = self.tensor(*storage, first, size, stride, at)?;
                self.push_tensor(tensor)?
            }
            (Global::RebuildTensorV2, [V::Storage(storage), first, size, stride, _, _, metadata]) => {
                // It says that values must be negated or conjugated first.
                let plain = *metadata == V::None || self.parsed.pairs(metadata).is_some_and(<[_]>::is_empty);
                if !plain {
                    return Err(unsupported("a tensor with a negative or conjugate view"));
                }
                let tensor = self.tensor(*storage, first, size, stride, at)?;
                self.push_tensor(tensor)?
            }
            _ => {
                return Err(
                    at.corrupt(format!("{function:?} is called with other arguments than torch.save writes"))
                );
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn tensor(&self, storage: u32, first: &V, size: &V, stride: &V, at: &Cursor) -> Result<Tensor, Fault> {
        let number = |value: &V| match value {
            V::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let build = || {
            let (size, stride) = (self.parsed.items(size)?, self.parsed.items(stride)?);
            let dims =
                size.iter().zip(stride).map(|(n, s)| number(n).zip(number(s))).collect::<Option<Vec<_>>>()?;
            (size.len() == stride.len()).then_some(Tensor { storage, first: number(first)?, dims })
        };
        build().ok_or_else(|| at.corrupt("a tensor's offset, shape or strides are no numbers, or negative"))
    }

    fn push_tensor(&mut self, tensor: Tensor) -> Result<V, Fault> {
        self.parsed.charge((tensor.dims.len() as u64).saturating_mul(16).saturating_add(96))?;
        self.parsed.tensors.push(tensor);
        Ok(V::Tensor(index(self.parsed.tensors.len().saturating_sub(1))))
    }
}

/// Numbers of values fit: a pickle of less than 4 GiB has fewer.
fn index(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn underflow(at: &Cursor) -> Fault {
    at.corrupt("the pickle's stack is empty")
}

fn unsupported(what: impl Into<String>) -> Fault {
    Fault::Unsupported { tensor: None, reason: what.into() }
}

/// A little-endian integer in two's complement.
fn long(bytes: &[u8]) -> V {
    if bytes == super::legacy::MAGIC {
        return V::Magic;
    }
    let sign = bytes.last().map_or(0, |b| if b & 0x80 == 0 { 0 } else { 0xff });
    let mut wide = [sign; 8];
    match wide.get_mut(..bytes.len()) {
        Some(low) => low.copy_from_slice(bytes),
        None => return V::Other,
    }
    V::Int(i64::from_le_bytes(wide))
}

fn pairs(items: Vec<V>, at: &Cursor) -> Result<Vec<(V, V)>, Fault> {
    let (pairs, rest) = items.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(at.corrupt("a key without a value")),
    }
}

fn line<'a>(at: &mut Cursor<'a>) -> Result<&'a str, Fault> {
    let mut ahead = at.clone();
    let mut len = 0usize;
    while ahead.u8()? != b'\n' {
        len = len.saturating_add(1);
        if len > MAX_GLOBAL {
            return Err(at.corrupt("a global with a name of more than 256 bytes"));
        }
    }
    let bytes = at.take(len as u64)?;
    at.take(1)?;
    std::str::from_utf8(bytes).map_err(|_| at.corrupt("a global's name is not UTF-8"))
}

/// The closed list.
fn global(module: &str, name: &str) -> Result<Global, Fault> {
    let storage = STORAGES.iter().position(|(class, _)| *class == name).and_then(|i| u8::try_from(i).ok());
    match (module, name, storage) {
        ("collections", "OrderedDict", _) => Ok(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor", _) => Ok(Global::RebuildTensor),
        ("torch._utils", "_rebuild_tensor_v2", _) => Ok(Global::RebuildTensorV2),
        ("torch._utils", "_rebuild_parameter", _) => Ok(Global::RebuildParameter),
        ("torch", _, Some(class)) => Ok(Global::Storage(class)),
        _ => {
            let name: String = format!("{module}.{name}").chars().take(200).collect();
            Err(unsupported(format!(
                "the pickle asks for {name:?}; only dictionaries of plain tensors are read"
            )))
        }
    }
}
