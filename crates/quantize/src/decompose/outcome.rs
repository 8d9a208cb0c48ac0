//! What is known of a matrix when it is written, and settles a file's end: kept in the journal, so that a conversion
//! that was killed need not find it again.

/// A matrix that was written as a sum.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// How many values it has.
    pub values: u64,
    /// ‖W − Ŵ‖² and ‖W‖².
    pub energies: [f64; 2],
    /// The number of its R shard, and what that is worth in each window of the calibration text.
    pub routed: Option<(u32, Vec<f64>)>,
}

impl Outcome {
    /// Adds it to a note.
    pub(super) fn put(&self, note: &mut Vec<u8>) {
        note.extend(self.values.to_le_bytes());
        self.energies.iter().for_each(|v| note.extend(v.to_le_bytes()));
        let (shard, worths) = self.routed.as_ref().map_or((0, &[][..]), |(shard, worths)| (*shard, worths));
        note.extend(shard.to_le_bytes());
        note.extend((worths.len() as u64).to_le_bytes());
        worths.iter().for_each(|v| note.extend(v.to_le_bytes()));
    }

    /// All outcomes of a note; nothing if it is none.
    pub(super) fn all(mut note: &[u8]) -> Option<Vec<Outcome>> {
        let note = &mut note;
        let mut all = Vec::new();
        while !note.is_empty() {
            let values = u64::from_le_bytes(take(note)?);
            let energies = [f64::from_le_bytes(take(note)?), f64::from_le_bytes(take(note)?)];
            let (shard, n) = (u32::from_le_bytes(take(note)?), u64::from_le_bytes(take(note)?));
            let worths = (0..n).map(|_| take(note).map(f64::from_le_bytes)).collect::<Option<Vec<f64>>>()?;
            let routed = (!worths.is_empty()).then_some((shard, worths));
            all.push(Outcome { values, energies, routed });
        }
        Some(all)
    }
}

fn take<const N: usize>(note: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = note.split_first_chunk::<N>()?;
    *note = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_say_what_was_put() {
        let plain = Outcome { values: 12, energies: [0.1, 7.0], routed: None };
        let routed = Outcome { routed: Some((9, vec![0.5, -0.0, 1e-300])), ..plain.clone() };
        let mut note = Vec::new();
        [&plain, &routed, &plain].into_iter().for_each(|outcome| outcome.put(&mut note));
        assert_eq!(Outcome::all(&note).unwrap(), [plain.clone(), routed, plain]);
        assert_eq!(Outcome::all(&[]).unwrap(), []);
        let cuts = (1..note.len()).filter(|len| Outcome::all(&note[..*len]).is_some());
        assert_eq!(cuts.count(), 2, "after the first and after the second");
        // A count that nothing follows is no reason to reserve memory.
        note[28..36].fill(0xff);
        assert_eq!(Outcome::all(&note), None);
    }
}
