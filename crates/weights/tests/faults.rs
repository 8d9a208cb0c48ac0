//! What happens when files fail while a model runs: errors with a name and a place, and nothing else.

use fonio_checkpoint::{Checkpoint, Error, Metadata, TensorPlan, WriteOptions, list, open};
use fonio_codec::DType;
use fonio_weights::{Part, Policy, ReadAt, Weights};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const LAYERS: usize = 6;
const LEN: u64 = 5_300_000;

/// A file of one tensor for each layer, filled with the layer's number.
fn model(folder: &Path) -> Arc<dyn Checkpoint> {
    let path = folder.join("m.gguf");
    let plans: Vec<TensorPlan> =
        (0..LAYERS).map(|i| TensorPlan::new(format!("t{i}"), DType::named("I8").unwrap(), [LEN])).collect();
    let create = list::named("gguf").unwrap().create.unwrap();
    let mut writer = create(&path, &Metadata::new(), &plans, &WriteOptions::default()).unwrap();
    for i in 0..LAYERS {
        writer.append(&vec![i as u8; LEN as usize]).unwrap();
    }
    writer.finish().unwrap();
    open(&path).unwrap().into()
}

fn bound(checkpoint: Arc<dyn Checkpoint>) -> (Weights, Vec<fonio_weights::WeightId>) {
    let mut weights = Weights::new(checkpoint);
    let ids = (0..LAYERS).map(|i| weights.bind(Part::Layer(i), i, 0..LEN)).collect();
    (weights, ids)
}

/// Goes round the layers and checks each byte.
fn rounds(weights: &Weights, ids: &[fonio_weights::WeightId], n: usize) -> Result<(), Error> {
    for _ in 0..n {
        for (i, id) in ids.iter().enumerate() {
            let lease = weights.lease(Part::Layer(i))?;
            let bytes = lease.bytes(*id)?;
            assert!(bytes.len() as u64 == LEN && bytes.iter().all(|b| usize::from(*b) == i), "layer {i}");
        }
    }
    Ok(())
}

/// A file that reads in little pieces, is interrupted often, and fails or ends when it is told to.
struct Bad {
    file: std::fs::File,
    reads: Arc<AtomicU64>,
    short: bool,
    fails_at: Option<(u64, ErrorKind)>,
    ends_at: Option<u64>,
    direct: bool,
}

impl ReadAt for Bad {
    fn read_at(&self, dst: &mut [u8], offset: u64) -> IoResult<usize> {
        let n = self.reads.fetch_add(1, Ordering::Relaxed);
        if self.direct && self.short {
            // A file system that opens a file for direct reads and then has none.
            return Err(ErrorKind::InvalidInput.into());
        }
        if self.short && n.is_multiple_of(3) {
            return Err(ErrorKind::Interrupted.into());
        }
        if let Some((at, kind)) = self.fails_at
            && (offset..offset + dst.len() as u64).contains(&at)
        {
            return Err(IoError::new(kind, "the disk is broken"));
        }
        let len = if self.short { dst.len().min(4097) } else { dst.len() };
        let end = self.ends_at.map_or(len as u64, |end| end.saturating_sub(offset).min(len as u64));
        std::os::unix::fs::FileExt::read_at(&self.file, &mut dst[..end as usize], offset)
    }
}

fn started(
    folder: &Path,
    short: bool,
    fails_at: Option<(u64, ErrorKind)>,
    ends_at: Option<u64>,
) -> (Result<(), Error>, Weights, Vec<fonio_weights::WeightId>) {
    let (mut weights, ids) = bound(model(folder));
    let reads = Arc::new(AtomicU64::new(0));
    let budget_bytes = weights.least_bytes() + LEN + 100_000;
    let result = weights.start_with(Policy::Streamed { budget_bytes }, &move |path, direct| {
        let (file, reads) = (std::fs::File::open(path)?, reads.clone());
        Ok(Box::new(Bad { file, reads, short, fails_at, ends_at, direct }))
    });
    (result, weights, ids)
}

#[test]
fn layers_come_round_whatever_pieces_they_are_read_in() {
    for short in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (result, weights, ids) = started(folder.path(), short, None, None);
        result.unwrap();
        assert!(
            !weights.plan().streamed.is_empty() && weights.plan().held.len() == 1,
            "{:?}",
            weights.plan()
        );
        rounds(&weights, &ids, 4).unwrap();
        let most = 5 * (weights.plan().streamed.len() as u64 + 1) * (LEN + 8192);
        assert!(weights.stats().bytes > 3 * 5 * LEN && weights.stats().bytes <= most);
    }
}

#[test]
fn any_order_works() {
    let folder = tempfile::tempdir().unwrap();
    let (result, weights, ids) = started(folder.path(), false, None, None);
    result.unwrap();
    let mut at = 1usize;
    for _ in 0..200 {
        at = (at * 5 + 3) % 97;
        let layer = at % LAYERS;
        let lease = weights.lease(Part::Layer(layer)).unwrap();
        assert!(lease.bytes(ids[layer]).unwrap().iter().all(|b| usize::from(*b) == layer));
        // What belongs to another part is not readable through this lease.
        assert!(lease.bytes(ids[(layer + 1) % LAYERS]).is_err());
    }
}

#[test]
fn a_broken_disk_is_told_with_the_part_and_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = model(folder.path());
    let at = checkpoint.tensors()[3].offset + 5000;
    drop(checkpoint);
    let other = tempfile::tempdir().unwrap();
    let (result, weights, ids) = started(other.path(), false, Some((at, ErrorKind::Other)), None);
    let error = result.and_then(|()| rounds(&weights, &ids, 2)).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Io { .. }), "{text}");
    assert!(
        text.contains("layer 3") && text.contains("the disk is broken") && text.contains("at byte"),
        "{text}"
    );
    // Others can still be used, and the broken one fails again.
    drop(weights.lease(Part::Layer(1)).unwrap());
    assert!(weights.lease(Part::Layer(3)).is_err());
}

#[test]
fn a_file_that_became_shorter_is_told_with_the_part_and_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let end = model(folder.path()).tensors()[4].offset + 7;
    for short in [false, true] {
        let other = tempfile::tempdir().unwrap();
        let (result, weights, ids) = started(other.path(), short, None, Some(end));
        match result.and_then(|()| rounds(&weights, &ids, 2)).unwrap_err() {
            Error::Corrupt { tensor: Some(name), offset: Some(offset), .. } => {
                assert!(name == "layer 4" && offset <= end, "{name} {offset}");
            }
            e => panic!("{e}"),
        }
    }
}

#[test]
fn several_threads_lease_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (result, weights, ids) = started(folder.path(), false, None, None);
    result.unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| rounds(&weights, &ids, 3).unwrap());
        }
    });
}

/// Waits until a part has arrived, for some seconds.
fn arrives(weights: &Weights, part: Part) -> bool {
    for _ in 0..500 {
        if weights.has(part) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    weights.has(part)
}

#[test]
fn experts_that_were_guessed_wrongly_make_room_for_the_next_guess() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = Weights::new(model(folder.path()));
    let part = |i: usize| Part::Expert { layer: i / 3, expert: i % 3 };
    let ids: Vec<_> = (0..LAYERS).map(|i| weights.bind(part(i), i, 0..LEN)).collect();
    let budget_bytes = weights.least_bytes();
    weights.start(Policy::Streamed { budget_bytes }).unwrap();
    assert_eq!(weights.plan().expert_frames.0, 2);
    // Both places are taken by guesses, one of which is right.
    weights.want(&[part(0), part(1)], false);
    assert!(arrives(&weights, part(0)) && arrives(&weights, part(1)));
    weights.want(&[part(1), part(2)], true);
    // Nobody leases it, so it is only read if a guess that did not come true makes room by itself.
    assert!(arrives(&weights, part(2)));
    assert!(!weights.has(part(0)) && weights.has(part(1)), "the wrong guess went");
    drop([1, 2].map(|i| weights.lease(part(i)).unwrap().bytes(ids[i]).unwrap().to_vec()));
    // The same a layer on.
    weights.want(&[part(3), part(4)], false);
    assert!(arrives(&weights, part(3)) && arrives(&weights, part(4)));
    assert_eq!((weights.stats().hits, weights.stats().misses), (1, 1));
}
