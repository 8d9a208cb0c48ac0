//! PyTorch: files that torch.save made, and every trick that a ZIP file or a pickle could try.

mod common;

use common::{Dir, EDGES};
use fonio_checkpoint::{Checkpoint, Checksums, Error, Value, fuzzing, list, open};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pytorch").join(name)
}

fn same(opened: &dyn Checkpoint, expected: &dyn Checkpoint) {
    let mut names: Vec<_> = opened.tensors().iter().map(|t| t.name.as_str()).collect();
    let mut wanted: Vec<_> = expected.tensors().iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
    for (i, want) in expected.tensors().iter().enumerate() {
        let at = opened.find(&want.name).unwrap();
        let info = &opened.tensors()[at];
        assert_eq!(
            (info.dtype, &info.shape, info.nbytes),
            (want.dtype, &want.shape, want.nbytes),
            "{}",
            want.name
        );
        let bytes = expected.bytes(i).unwrap();
        assert_eq!(opened.bytes(at).unwrap(), bytes, "{}", want.name);
        for cut in [1, 3, 64, 4096] {
            let mut read = vec![0; bytes.len()];
            for (n, part) in read.chunks_mut(cut).enumerate() {
                opened.read(at, (n * cut) as u64, part).unwrap();
            }
            assert_eq!(read, *bytes, "{} by {cut}", want.name);
        }
        assert!(matches!(opened.read(at, 1, &mut vec![0; bytes.len()]), Err(Error::Refused { .. })));
    }
}

#[test]
fn what_torch_saved() {
    for (file, expected, checksums) in [
        ("views.pt", "views", 21),
        ("views_p4.pt", "views", 21),
        ("views_nocrc.pt", "views", 0),
        ("views_legacy.pt", "views", 0),
        ("views_legacy_p5.pt", "views", 0),
        ("kinds.pt", "kinds", 16),
        ("module.pt", "module", 12),
        ("training.pt", "training", 12),
        ("nested.pt", "nested", 10),
    ] {
        let opened = open(&data(file)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(opened.container(), "pytorch");
        same(&*opened, &*open(&data(&format!("{expected}.safetensors"))).unwrap());
        match (opened.verify_checksums().unwrap(), checksums) {
            (Checksums::None, 0) => {}
            (Checksums::Valid(n), _) if n > 0 && checksums > 0 => {}
            (found, _) => panic!("{file}: {found:?}"),
        }
        // From memory too, as it is fuzzed.
        same(&*fuzzing::pytorch(&std::fs::read(data(file)).unwrap()).unwrap(), &*opened);
    }
}

#[test]
fn contiguous_tensors_are_borrowed_and_aligned() {
    let opened = open(&data("views.pt")).unwrap();
    for (name, borrowed) in
        [("base", true), ("rows", true), ("one", true), ("transposed", false), ("columns", false)]
    {
        let bytes = opened.bytes(opened.find(name).unwrap()).unwrap();
        assert_eq!(matches!(bytes, std::borrow::Cow::Borrowed(_)), borrowed, "{name}");
    }
    let base = &opened.tensors()[opened.find("base").unwrap()];
    assert!(base.offset.is_multiple_of(64));
}

#[test]
fn other_values_are_metadata() {
    let opened = open(&data("nested.pt")).unwrap();
    let get = |key: &str| opened.metadata().get(key).cloned();
    assert_eq!(get("step"), Some(Value::I64(12)));
    assert_eq!(get("rate"), Some(Value::F64(0.25)));
    assert_eq!(get("name"), Some("größe".into()));
    assert_eq!(get("done"), Some(true.into()));
    assert_eq!(opened.metadata().len(), 4);
}

#[test]
fn sharded_models() {
    let expected = open(&data("module.safetensors")).unwrap();
    for name in
        ["sharded", "sharded/pytorch_model.bin.index.json", "sharded/pytorch_model-00002-of-00002.bin"]
    {
        let opened = open(&data(name)).unwrap();
        assert_eq!(opened.files().len(), 2);
        same(&*opened, &*expected);
    }
    same(&*(list::named("pytorch").unwrap().open)(&data("sharded")).unwrap(), &*expected);
    let dir = Dir::new();
    for entry in std::fs::read_dir(data("sharded")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::remove_file(dir.join("pytorch_model-00002-of-00002.bin")).unwrap();
    let error = open(dir.path()).err().unwrap();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("is missing"), "{error}");
}

#[test]
fn what_is_refused() {
    for (file, names) in [
        ("system.pt", "posix.system"),
        ("system_legacy.pt", "posix.system"),
        ("whole_module.pt", "torch.nn.modules.linear.Linear"),
        ("sparse.pt", "torch._utils._rebuild_sparse_tensor"),
        ("quantized.pt", "torch._utils._rebuild_qtensor"),
        ("float8.pt", "torch._utils._rebuild_tensor_v3"),
        ("complex.pt", "torch.ComplexFloatStorage"),
        ("conjugate.pt", "torch.ComplexFloatStorage"),
        ("negative.pt", "negative or conjugate"),
        ("script.pt", "TorchScript"),
    ] {
        let error = open(&data("refused").join(file)).err().unwrap_or_else(|| panic!("{file} was accepted"));
        assert!(matches!(error, Error::Unsupported { .. }), "{file}: {error}");
        assert!(error.to_string().contains(names), "{file}: {error}");
    }
    let error = open(&data("refused/expanded.pt")).err().unwrap();
    assert!(matches!(&error, Error::Limit { tensor: Some(name), .. } if name == "w"), "{error}");
    assert!(!Path::new("/tmp/fonio-was-here").exists());
}

/// An entry of a ZIP file, with what may be wrong with it.
#[derive(Clone)]
struct Entry {
    name: Vec<u8>,
    local_name: Vec<u8>,
    data: Vec<u8>,
    flags: u16,
    local_flags: u16,
    method: u16,
    crc: Option<u32>,
    len: u32,
    header: Option<u32>,
}

fn entry(name: &str, data: &[u8]) -> Entry {
    Entry {
        name: name.into(),
        local_name: name.into(),
        data: data.into(),
        flags: 0,
        local_flags: 0,
        method: 0,
        crc: None,
        len: data.len() as u32,
        header: None,
    }
}

fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for e in entries {
        let crc = e.crc.unwrap_or_else(|| crc32fast::hash(&e.data)).to_le_bytes();
        let sizes = [e.len.to_le_bytes(), e.len.to_le_bytes()].concat();
        let header = e.header.unwrap_or(out.len() as u32).to_le_bytes();
        out.extend(
            [
                b"PK\x03\x04\x14\0",
                &e.local_flags.to_le_bytes()[..],
                &e.method.to_le_bytes(),
                &[0; 4],
                &crc,
                &sizes,
            ]
            .concat(),
        );
        out.extend(
            [&(e.local_name.len() as u16).to_le_bytes()[..], &[0; 2], &e.local_name, &e.data].concat(),
        );
        directory.extend(
            [
                b"PK\x01\x02\x14\0\x14\0",
                &e.flags.to_le_bytes()[..],
                &e.method.to_le_bytes(),
                &[0; 4],
                &crc,
                &sizes,
            ]
            .concat(),
        );
        directory.extend([&(e.name.len() as u16).to_le_bytes()[..], &[0; 12], &header, &e.name].concat());
    }
    let (offset, count) = (out.len() as u32, (entries.len() as u16).to_le_bytes());
    out.extend(&directory);
    out.extend(
        [
            b"PK\x05\x06\0\0\0\0",
            &count[..],
            &count,
            &(directory.len() as u32).to_le_bytes(),
            &offset.to_le_bytes(),
            &[0; 2],
        ]
        .concat(),
    );
    out
}

/// `{"w": tensor of a FloatStorage "0"}` with these numbers.
fn tensor_pickle(numel: i32, first: i32, size: &[i32], stride: &[i32]) -> Vec<u8> {
    let int = |n: i32| [&b"J"[..], &n.to_le_bytes()].concat();
    let tuple =
        |items: &[i32]| [&b"("[..], &items.iter().flat_map(|&n| int(n)).collect::<Vec<_>>(), b"t"].concat();
    let text = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &int(numel),
        b"tQ",
        &int(first),
        &tuple(size),
        &tuple(stride),
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

fn archive(pickle: &[u8], storage: usize) -> Vec<u8> {
    zip(&[
        entry("a/data.pkl", pickle),
        entry("a/byteorder", b"little"),
        entry("a/data/0", &vec![7; storage]),
        entry("a/version", b"3\n"),
    ])
}

#[test]
fn our_own_archives_are_read() {
    let bytes = archive(&tensor_pickle(4, 0, &[2, 2], &[2, 1]), 16);
    let opened = fuzzing::pytorch(&bytes).unwrap();
    assert_eq!(opened.tensors()[0].shape, [2, 2]);
    assert_eq!(opened.verify_checksums().unwrap(), Checksums::Valid(4));
}

#[test]
fn storages_that_do_not_fit() {
    let ok = |numel, first, size: &[i32], stride: &[i32], storage| {
        fuzzing::pytorch(&archive(&tensor_pickle(numel, first, size, stride), storage))
    };
    for (numel, first, size, stride, storage) in [
        (4, 0, &[5][..], &[1][..], 16),
        (4, 1, &[4], &[1], 16),
        (4, 4, &[1], &[1], 16),
        (4, 4, &[], &[], 16),
        (4, 0, &[2, 2], &[3, 1], 16),
        (4, 0, &[2], &[i32::MAX], 16),
        (4, 0, &[2, 2], &[1], 16),
        (4, 0, &[2], &[2, 1], 16),
        (4, 0, &[-1], &[1], 16),
        (4, 0, &[1], &[-1], 16),
        (4, -1, &[1], &[1], 16),
        (-4, 0, &[1], &[1], 16),
        (4, 0, &[4], &[1], 15),
        (4, 0, &[4], &[1], 17),
        (4, 0, &[4], &[1], 0),
        (i32::MAX, 0, &[4], &[1], 16),
        (4, 0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0], 16),
        (4, 0, &[0, i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1, 1], 16),
    ] {
        let error = ok(numel, first, size, stride, storage).err();
        assert!(
            matches!(error, Some(Error::Corrupt { .. })),
            "{numel} {first} {size:?} {stride:?}: {error:?}"
        );
    }
    assert!(matches!(ok(4, 0, &[5], &[0], 16), Err(Error::Limit { .. })), "repeated values");
    assert!(ok(4, 3, &[1, 1], &[900, 77], 16).is_ok(), "strides of single values mean nothing");
    assert!(ok(0, 0, &[0, 3], &[3, 1], 0).is_ok());
    assert!(ok(4, 100, &[0], &[1], 16).is_ok(), "nothing is nowhere");
}

type Change = fn(&mut Entry);

#[test]
fn zip_tricks() {
    let good = || {
        let pickle = tensor_pickle(4, 0, &[4], &[1]);
        vec![entry("a/data.pkl", &pickle), entry("a/data/0", &[7; 16]), entry("a/version", b"3\n")]
    };
    assert!(fuzzing::pytorch(&zip(&good())).is_ok());
    fn rename(e: &mut Entry, name: &str) {
        (e.name, e.local_name) = (name.into(), name.into());
    }
    let changes: &[(&str, Change)] = &[
        ("absolute", |e| rename(e, "/a/data/0")),
        ("parent", |e| rename(e, "a/../a/data/0")),
        ("parent first", |e| rename(e, "../a/data/0")),
        ("here", |e| rename(e, "a/./data/0")),
        ("twice separated", |e| rename(e, "a//data/0")),
        ("folder", |e| rename(e, "a/data/0/")),
        ("backslash", |e| rename(e, "a\\data\\0")),
        ("drive", |e| rename(e, "c:/data/0")),
        ("stream", |e| rename(e, "a/data/0:x")),
        ("device", |e| rename(e, "a/data/NUL")),
        ("zero byte", |e| rename(e, "a/data/0\0")),
        ("no name", |e| rename(e, "")),
        ("long name", |e| rename(e, &"n".repeat(300))),
        ("not UTF-8", |e| (e.name, e.local_name) = (b"a/\xff".into(), b"a/\xff".into())),
        ("duplicate", |e| rename(e, "a/version")),
        ("other local name", |e| e.local_name = b"a/data/1".into()),
        ("other local length", |e| e.local_name = b"a/data/00".into()),
        ("encrypted", |e| (e.flags, e.local_flags) = (1, 1)),
        ("patched", |e| (e.flags, e.local_flags) = (1 << 5, 1 << 5)),
        ("strongly encrypted", |e| (e.flags, e.local_flags) = (1 << 6, 1 << 6)),
        ("masked", |e| (e.flags, e.local_flags) = (1 << 13, 1 << 13)),
        ("locally encrypted", |e| e.local_flags = 1),
        ("deflated", |e| e.method = 8),
        ("unknown method", |e| e.method = 99),
        ("too long", |e| e.len = 1 << 20),
        ("all bits", |e| e.len = u32::MAX),
        ("header elsewhere", |e| e.header = Some(1)),
        ("header past the end", |e| e.header = Some(u32::MAX - 1)),
        ("header of another", |e| e.header = Some(0)),
        ("storage renamed", |e| rename(e, "a/data/1")),
    ];
    for (what, change) in changes {
        let mut entries = good();
        change(&mut entries[1]);
        let error = fuzzing::pytorch(&zip(&entries)).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(matches!(error, Error::Corrupt { .. } | Error::Unsupported { .. }), "{what}: {error}");
    }
    let mut bad_pickle = good();
    bad_pickle[0].crc = Some(1);
    assert!(matches!(fuzzing::pytorch(&zip(&bad_pickle)), Err(Error::Corrupt { .. })), "pickle's checksum");
    let mut bad_storage = good();
    bad_storage[1].crc = Some(1);
    let opened = fuzzing::pytorch(&zip(&bad_storage)).unwrap();
    let error = opened.verify_checksums().err().unwrap();
    assert!(matches!(&error, Error::Corrupt { tensor: Some(name), .. } if name == "a/data/0"), "{error}");
    for (what, entries) in [
        ("no pickle", good()[1..].to_vec()),
        ("no storage", vec![good()[0].clone()]),
        ("two pickles", [good(), vec![entry("b/data.pkl", b"\x80\x02}.")]].concat()),
        ("big-endian", [good(), vec![entry("a/byteorder", b"big")]].concat()),
        ("code", [good(), vec![entry("a/constants.pkl", b"")]].concat()),
        ("nothing", vec![]),
    ] {
        assert!(fuzzing::pytorch(&zip(&entries)).is_err(), "{what} was accepted");
    }
}

#[test]
fn bytes_before_after_and_between() {
    let good = archive(&tensor_pickle(4, 0, &[4], &[1]), 16);
    let end = good.len() - 22;
    for extra in [&b"x"[..], b"GGUF", &good] {
        assert!(fuzzing::pytorch(&[extra, &good].concat()).is_err(), "before");
        assert!(fuzzing::pytorch(&[&good, extra].concat()).is_err(), "after");
        assert!(
            fuzzing::pytorch(&[&good[..end], extra, &good[end..]].concat()).is_err(),
            "before the end record"
        );
    }
    for cut in 0..good.len() {
        assert!(fuzzing::pytorch(&good[..cut]).is_err(), "cut at {cut}");
    }
    // Each number of the end record wrong.
    for at in 4..22 {
        let mut bytes = good.clone();
        bytes[end + at] = bytes[end + at].wrapping_add(1);
        assert!(fuzzing::pytorch(&bytes).is_err(), "byte {at} of the end record");
    }
}

#[test]
fn zip64_numbers() {
    // torch.save always writes the 64-bit records.
    let good = std::fs::read(data("module.pt")).unwrap();
    let record = good.len() - 22 - 20 - 56;
    assert_eq!(good[record..][..4], *b"PK\x06\x06");
    for field in [4, 24, 32, 40, 48, 56 + 8] {
        for edge in EDGES {
            let mut bytes = good.clone();
            bytes[record + field..][..8].copy_from_slice(&edge.to_le_bytes());
            assert!(matches!(fuzzing::pytorch(&bytes), Err(Error::Corrupt { .. })), "{field}: {edge}");
        }
    }
}

#[test]
fn legacy_numbers() {
    let good = std::fs::read(data("views_legacy.pt")).unwrap();
    for cut in 0..good.len() {
        assert!(fuzzing::pytorch(&good[..cut]).is_err(), "cut at {cut}");
    }
    assert!(fuzzing::pytorch(&[&good[..], b"x"].concat()).is_err());
    let opened = fuzzing::pytorch(&good).unwrap();
    // The count of a storage's values is just before it.
    let count = opened.tensors()[opened.find("base").unwrap()].offset as usize - 8;
    for edge in EDGES {
        let mut bytes = good.clone();
        bytes[count..][..8].copy_from_slice(&edge.to_le_bytes());
        assert!(matches!(fuzzing::pytorch(&bytes), Err(Error::Corrupt { .. })), "{edge}");
    }
}

#[test]
fn pickles_that_only_an_attacker_writes() {
    let refuse = |what: &str, body: &[u8]| {
        let bytes = archive(&[b"\x80\x02", body].concat(), 0);
        let error = fuzzing::pytorch(&bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(!matches!(error, Error::Io { .. } | Error::Refused { .. }), "{what}: {error}");
        error.to_string()
    };
    for (module, name) in [
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("collections", "OrderedDict.__init__"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("torch.serialization", "FloatStorage"),
    ] {
        let text = refuse(name, format!("c{module}\n{name}\n.").as_bytes());
        assert!(text.contains(&format!("{module}.{name}")), "{text}");
        let stack = [
            &b"\x8c"[..],
            &[module.len() as u8],
            module.as_bytes(),
            b"\x8c",
            &[name.len() as u8],
            name.as_bytes(),
            b"\x93.",
        ];
        assert!(refuse(name, &stack.concat()).contains(&format!("{module}.{name}")));
    }
    let known: &[u8] =
        b"\x80\x95.(01N\x88\x89JKM\x8aGXT\x8cU\x8dBC\x8e)]\x85\x86\x87tl}daesuhjqr\x94c\x93RbQ";
    for opcode in (0..=255u8).filter(|op| !known.contains(op)) {
        let text = refuse("opcode", &[opcode, b'.']);
        assert!(text.contains(&format!("{opcode:#04x}")), "{text}");
    }
    for opcode in known {
        refuse("with nothing before it", &[*opcode]);
        refuse("with zeros after it", &[&[*opcode][..], &[0; 16]].concat());
        refuse("with ones after it", &[&[*opcode][..], &[255; 16]].concat());
    }
    for (what, body) in [
        ("nothing", &b""[..]),
        ("no end", b"}"),
        ("end of an empty stack", b"."),
        ("two values", b"}}."),
        ("open mark", b"(}."),
        ("protocol 1", b"\x80\x01}."),
        ("protocol 6", b"\x80\x06}."),
        ("bytes after the end", b"}.}"),
        ("odd dictionary", b"(Nd."),
        ("mark below", b"}(s."),
        ("append to a mark's outside", b"](a."),
        ("set on a list", b"]NNs."),
        ("append to a dictionary", b"}Na."),
        ("call of a text", b"X\0\0\0\0)R."),
        ("call with a dictionary", b"ccollections\nOrderedDict\n}R."),
        ("dictionary of numbers", b"ccollections\nOrderedDict\n(K\x01tR."),
        ("a storage called", b"ctorch\nFloatStorage\n)R."),
        ("rebuilt from nothing", b"ctorch._utils\n_rebuild_tensor_v2\n)R."),
        ("parameter of nothing", b"ctorch._utils\n_rebuild_parameter\n(NNNtR."),
        ("attributes of a list", b"]}b."),
        ("not remembered", b"h\x00."),
        ("remembered out of order", b"}q\x05."),
        ("reference to nothing", b"NQ."),
        ("reference to a module", b"(X\x06\0\0\0moduleNNNNtQ."),
        ("endless name", &[b'c'; 400]),
        ("name not UTF-8", b"c\xff\n\xff\n."),
        ("text not UTF-8", b"X\x01\0\0\0\xff."),
        ("key that is a list", b"}]Ns."),
        ("itself inside", b"}q\x00X\x01\0\0\0ah\x00s."),
        ("list inside itself", b"]q\x00h\x00a."),
        ("one list twice", b"}]q\x00X\x01\0\0\0ah\x00sX\x01\0\0\0bh\x00s."),
        ("key twice", b"}X\x01\0\0\0aNX\x01\0\0\0aK\x01s0."),
        ("frame past the end", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f}."),
    ] {
        refuse(what, body);
    }
    refuse("deep list", &[&[b']'; 60_000][..], &[b'a'; 59_999], b"."].concat());
    assert!(refuse("deep stack", &[&[b'N'; 100_000][..], b"."].concat()).contains("stack"));
    assert!(refuse("marks", &[&[b'('; 100_000][..], b"."].concat()).contains("stack"));
    // A long key, used again and again.
    let mut body = [&b"}X\0\0\x01\0"[..], &[b'k'; 1 << 16], b"q\x000"].concat();
    body.extend(b"}q\x01(");
    body.extend(b"h\x00K\x01".repeat(1000));
    body.extend(b"u.");
    refuse("names", &body);
}

#[test]
fn gathering_is_bounded_by_the_storage() {
    // A window over a large storage: many small pieces, far apart.
    let n = 1 << 20;
    let pickle = tensor_pickle(n, 5, &[64, 3], &[1000, 300_000]);
    let mut storage = vec![0u8; n as usize * 4];
    for (i, value) in storage.chunks_exact_mut(4).enumerate() {
        value.copy_from_slice(&(i as u32).to_le_bytes());
    }
    let bytes = zip(&[entry("a/data.pkl", &pickle), entry("a/data/0", &storage)]);
    let opened = fuzzing::pytorch(&bytes).unwrap();
    let found = opened.bytes(0).unwrap();
    for (i, value) in found.chunks_exact(4).enumerate() {
        let want = 5 + (i / 3) * 1000 + (i % 3) * 300_000;
        assert_eq!(u32::from_le_bytes(value.try_into().unwrap()) as usize, want);
    }
}
