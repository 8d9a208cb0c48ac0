//! A CAWSF file that is interrupted and gone on with: the same bytes, and nothing that was written is computed again.

use fonio_checkpoint::cawsf::Packing;
use fonio_checkpoint::cawsf::v2::{Kind, V2};
use fonio_checkpoint::{Checkpoint, Error as FileError, Metadata, Resume, TensorInfo};
use fonio_model::source::Source;
use fonio_quantize::Error;
use fonio_quantize::convert::Plan;
use fonio_quantize::decompose::{Conversion, Report, Settings, count, run, scopes};
use fonio_simd::Isa;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A checkpoint that remembers which tensors were read, and from where on.
struct Watched {
    inner: Arc<dyn Checkpoint>,
    read: Mutex<HashSet<(String, u64)>>,
}

impl Watched {
    fn has_read(&self, tensor: &str, bytes: Range<u64>) -> bool {
        self.read.lock().unwrap().iter().any(|(name, at)| name == tensor && bytes.contains(at))
    }
}

impl Checkpoint for Watched {
    fn container(&self) -> &'static str {
        self.inner.container()
    }
    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }
    fn metadata(&self) -> &Metadata {
        self.inner.metadata()
    }
    fn tensors(&self) -> &[TensorInfo] {
        self.inner.tensors()
    }
    fn find(&self, name: &str) -> Option<usize> {
        self.inner.find(name)
    }
    fn bytes(&self, tensor: usize) -> Result<Cow<'_, [u8]>, FileError> {
        self.inner.bytes(tensor)
    }
    fn read(&self, tensor: usize, offset: u64, dst: &mut [u8]) -> Result<(), FileError> {
        self.read.lock().unwrap().insert((self.tensors()[tensor].name.clone(), offset));
        self.inner.read(tensor, offset, dst)
    }
}

fn watched() -> Watched {
    let grain = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/grain");
    Watched { inner: fonio_checkpoint::open(&grain).unwrap().into(), read: Mutex::default() }
}

/// A mixture of experts, by GGUF's names.
fn mixture() -> Watched {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance/models/mixtral");
    let source = Source::open(&folder).unwrap();
    Watched { inner: source.checkpoint().clone(), read: Mutex::default() }
}

const SMALL: Settings =
    Settings { rank: 4, band: None, outlier_q: 0.999, pq_m: 4, pq_k: 16, pq_d: 32, refine: 0, seed: 0 };

/// Converts, and stops when this share of all values is done.
fn convert(source: &Watched, out: &Path, settings: Settings, stop: f64) -> Result<Report, Error> {
    let plan = Plan::floats(source, Metadata::new(), None);
    let known = source.inner.find("blk.0.ffn_up_exps.weight").is_some();
    let sums = scopes(&plan, known, &[], 0, 0);
    assert!(count(&plan, &sums) > 20);
    let (cancel, end) = (AtomicBool::new(false), plan.len() as f64 * stop);
    let progress = |done: u64, _: &str| cancel.store(done as f64 >= end, Ordering::Relaxed);
    let conversion = Conversion {
        settings,
        packing: Packing::Lz4,
        max_layers: 0,
        max_elems: 0,
        force: false,
        resume: Some(Resume { identity: Vec::new(), take_up: true, step: if known { 1 } else { 1000 } }),
        threads: 2,
        isa: Isa::detect(),
        progress: &progress,
        cancel: Some(&cancel),
    };
    run(source, &plan, &sums, None, out, &conversion)
}

#[test]
fn what_is_written_is_not_read_again() {
    for (settings, stops) in [
        (SMALL, &[0.05, 0.3, 0.5, 0.7, 0.95][..]),
        (Settings { pq_m: 0, ..SMALL }, &[0.5]),
        (Settings { refine: 1, ..SMALL }, &[0.8]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let whole = scratch.path().join("whole.cawsf");
        let want = convert(&watched(), &whole, settings, 2.0).unwrap();
        let file = V2::open(&whole).unwrap();
        let mut kept = 0;
        for stop in stops {
            let out = scratch.path().join(format!("{stop}.cawsf"));
            let stopped = convert(&watched(), &out, settings, *stop);
            assert!(matches!(stopped, Err(Error::Cancelled)), "{stop}");
            let source = watched();
            let report = convert(&source, &out, settings, 2.0).unwrap();
            assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{stop}");
            assert_eq!((report.sums, report.parts), (want.sums, want.parts));
            assert_eq!((report.values, report.error), (want.values, want.error));
            for (at, tensor) in file.tensors().iter().enumerate() {
                let own = file.shards().iter().filter(|s| s.kind != Kind::Codebook && s.scope as usize == at);
                let end = own.map(|s| s.offset + s.stored).max().unwrap();
                let written = end <= report.resumed.bytes;
                kept += usize::from(written);
                assert_eq!(source.has_read(&tensor.name, 0..u64::MAX), !written, "{stop}: {}", tensor.name);
            }
        }
        assert!(kept >= stops.len() * 8, "{kept} tensors were there");
    }
}

#[test]
fn a_stack_is_gone_on_with_after_its_last_matrix() {
    let mut begun = 0;
    for (settings, stops) in [
        (SMALL, &[0.3, 0.62, 0.7, 0.78, 0.86, 0.93, 0.97][..]),
        (Settings { pq_m: 0, ..SMALL }, &[0.4, 0.6, 0.8]),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let whole = scratch.path().join("whole.cawsf");
        let want = convert(&mixture(), &whole, settings, 2.0).unwrap();
        let file = V2::open(&whole).unwrap();
        for stop in stops {
            let out = scratch.path().join(format!("{stop}.cawsf"));
            assert!(matches!(convert(&mixture(), &out, settings, *stop), Err(Error::Cancelled)), "{stop}");
            let source = mixture();
            let report = convert(&source, &out, settings, 2.0).unwrap();
            assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{stop}");
            assert_eq!((report.sums, report.values, report.error), (want.sums, want.values, want.error));
            for (at, tensor) in file.tensors().iter().enumerate() {
                let from = &source.inner.tensors()[source.inner.find(&tensor.name).unwrap()];
                let each = from.nbytes / file.matrices(at).len().max(1) as u64;
                let read = file.matrices(at).enumerate().map(|(i, matrix)| {
                    let end = file.shards_of(matrix).iter().map(|s| file.shards()[*s]);
                    let written = end.map(|s| s.offset + s.stored).max().unwrap() <= report.resumed.bytes;
                    let read = source.has_read(&tensor.name, i as u64 * each..(i as u64 + 1) * each);
                    assert_eq!(read, !written, "{stop}: {} {i}", tensor.name);
                    read
                });
                let read: Vec<bool> = read.collect();
                begun += usize::from(read.contains(&true) && read.contains(&false));
            }
        }
    }
    assert!(begun >= 3, "{begun} stacks were gone on with");
}

/// Where a matrix would have nothing to be the sum of, its stack stays whole.
#[test]
fn stacks_without_parts_stay_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("m.cawsf");
    let none = Settings { rank: 0, band: Some(0), outlier_q: 1.0, pq_m: 0, ..SMALL };
    let source = mixture();
    let report = convert(&source, &out, none, 2.0).unwrap();
    assert_eq!((report.sums, report.error), (0, 0.0));
    let file = V2::open(&out).unwrap();
    for (at, tensor) in file.tensors().iter().enumerate() {
        assert!(!file.is_sum(at));
        let from = source.inner.find(&tensor.name).unwrap();
        assert_eq!(file.bytes(at).unwrap(), source.inner.bytes(from).unwrap(), "{}", tensor.name);
    }
}

#[test]
fn other_settings_begin_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let (out, whole) = (scratch.path().join("m.cawsf"), scratch.path().join("whole.cawsf"));
    let other = Settings { seed: 1, ..SMALL };
    convert(&watched(), &whole, other, 2.0).unwrap();
    let stop = |settings| assert!(matches!(convert(&watched(), &out, settings, 0.7), Err(Error::Cancelled)));
    let again = || {
        let report = convert(&watched(), &out, other, 2.0).unwrap();
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap());
        std::fs::remove_file(&out).unwrap();
        report.resumed
    };
    stop(SMALL);
    let resumed = again();
    assert!(resumed.bytes == 0 && resumed.note.is_some_and(|note| note.contains("begun anew")));
    stop(other);
    assert!(again().bytes > 0);
    // A byte of a shard that is another one: what is before it is kept.
    stop(other);
    let part = scratch.path().join(".m.cawsf.part");
    let mut bytes = std::fs::read(&part).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&part, &bytes).unwrap();
    let resumed = again();
    assert!(resumed.bytes > 0 && resumed.bytes <= last as u64);
    // And of the header: nothing is.
    stop(other);
    bytes[0] ^= 1;
    std::fs::write(&part, &bytes).unwrap();
    assert!(again().note.is_some_and(|note| note.contains("damaged")));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the whole one");
}
