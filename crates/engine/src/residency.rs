//! Where a model's weights are kept, and how a budget of memory is spent.
//!
//! A budget counts everything: what the program takes before (its own memory and the tokenizer), the cache of a sequence,
//! the activations of a batch, and the weights. What the weights get is divided by [`fonio_weights::Plan`].

use crate::{Error, Options};
use fonio_checkpoint::Error as FileError;
use fonio_model::Model;
use fonio_model::cache::Cache;
use fonio_weights::{Plan as WeightPlan, Policy};

/// How weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the file's memory map: the operating system reads what is touched.
    Mmap,
    /// In memory, read at the start.
    Resident,
    /// Read from the file whenever they are needed, but for what the budget has place for.
    Stream,
}

impl Mode {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Mmap => "mmap",
            Mode::Resident => "resident",
            Mode::Stream => "stream",
        }
    }
}

/// A budget of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// This part of the memory that is free, of 1.
    Part(f64),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residency {
    /// How; by default mapped where it fits and streamed where it does not.
    pub mode: Option<Mode>,
    /// Within how much memory.
    pub budget: Option<Budget>,
}

/// How memory is spent. All sizes are bytes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How weights are kept.
    pub mode: Mode,
    /// What everything has to fit into, if there is a limit.
    pub budget_bytes: Option<u64>,
    /// The program and its tokenizer.
    pub program_bytes: u64,
    /// The cache of one sequence, when it is full.
    pub cache_bytes: u64,
    /// What a batch of tokens computes with.
    pub activation_bytes: u64,
    /// All weights.
    pub weight_bytes: u64,
    /// What is held and what is streamed.
    pub weights: WeightPlan,
    /// Positions of a sequence.
    pub context: usize,
    /// Tokens that are computed together.
    pub batch: usize,
    /// The smallest budget that streaming works with.
    pub least_bytes: u64,
}

impl Plan {
    /// Bytes that all of it takes, when weights are not mapped.
    pub fn nbytes(&self) -> u64 {
        self.program_bytes + self.cache_bytes + self.activation_bytes + self.weights.nbytes()
    }
}

/// Positions that a sequence gets at least, where nobody says how many.
const FEW_POSITIONS: usize = 256;
/// Positions that there must be place for to hold or map a model within a budget, where nobody says how many.
const SOME_POSITIONS: usize = 4096;
/// Tokens of a batch at least.
const FEW_TOKENS: usize = 8;
/// What the allocator and stacks may take beyond what is counted.
const SLACK: u64 = 8 << 20;

/// Chooses how the weights of a bound model are kept.
pub(crate) fn choose(model: &Model, options: &Options) -> Result<(Policy, Plan), Error> {
    let cost = Cost::of(model, options)?;
    let wanted = options.residency;
    let free = available_bytes();
    let budget_bytes = match (wanted.budget, free) {
        (Some(Budget::Bytes(bytes)), _) => Some(bytes),
        (Some(Budget::Part(part)), Some(free)) => Some((free as f64 * part) as u64),
        (Some(Budget::Part(_)), None) => {
            return Err(Error::Input("the system does not say how much memory is free: give bytes".into()));
        }
        (None, _) => None,
    };
    let (parts, scratch) = model.weights().parts();
    let weight_bytes: u64 = parts.iter().map(|p| p.nbytes).sum::<u64>() + scratch;
    let context = options.context.unwrap_or(model.spec().context_len);
    // A sequence whose length nobody said must have place for more than a few tokens to call it a fit.
    let everything = cost.total(options.context.unwrap_or(context.min(SOME_POSITIONS)), options.batch);
    let everything = everything.saturating_add(weight_bytes);
    let fits = budget_bytes.or(free).is_none_or(|limit| everything <= limit);
    // Residuals that are not kept come and go, and the rest is held.
    let rest = options.routed.as_ref().is_some_and(|routed| !routed.leave_out);
    let mode = wanted.mode.unwrap_or(if fits && !rest { Mode::Mmap } else { Mode::Stream });
    let least_bytes = cost.total(options.context.unwrap_or(context.min(FEW_POSITIONS)), FEW_TOKENS)
        + model.weights().least_bytes();
    let mut plan = Plan {
        mode,
        budget_bytes,
        program_bytes: cost.program,
        cache_bytes: cost.cache(context),
        activation_bytes: cost.activations(options.batch),
        weight_bytes,
        weights: WeightPlan::default(),
        context,
        batch: options.batch,
        least_bytes,
    };
    let file = model.weights().checkpoint().files().first().cloned().unwrap_or_default();
    let too_small = |need: u64, limit: u64, reason: &str| {
        let mib = |n: u64| n as f64 / f64::from(1 << 20);
        let (need, limit) = (mib(need), mib(limit));
        let reason = format!(
            "the budget is {limit:.1} MiB, {reason} needs at least {need:.1} MiB; a shorter context takes less"
        );
        Error::from(FileError::Limit { file: file.clone(), tensor: None, reason })
    };
    match (mode, budget_bytes) {
        (Mode::Mmap, Some(limit)) if !fits => Err(too_small(everything, limit, "mapping this model")),
        (Mode::Mmap, limit) => {
            cost.shorten(&mut plan, options, limit);
            Ok((Policy::Mapped, plan))
        }
        (Mode::Resident, Some(limit)) if !fits => {
            Err(too_small(everything, limit, "holding this model in memory"))
        }
        (Mode::Resident, limit) => {
            cost.shorten(&mut plan, options, limit);
            plan.weights = model.weights().plan_for(u64::MAX).unwrap_or_default();
            Ok((Policy::Resident, plan))
        }
        (Mode::Stream, limit) => {
            // Without a limit of its own a stream leaves the others some memory.
            let limit = limit.or(free.map(|free| free / 5 * 4)).unwrap_or(everything);
            plan.budget_bytes = Some(limit);
            if limit < least_bytes {
                return Err(too_small(least_bytes, limit, "streaming this model"));
            }
            let least_weights = model.weights().least_bytes();
            cost.fit(&mut plan, options, limit - least_weights);
            let budget_bytes = limit - cost.total(plan.context, plan.batch);
            plan.weights = model.weights().plan_for(budget_bytes).unwrap_or_default();
            Ok((Policy::Streamed { budget_bytes }, plan))
        }
    }
}

/// Positions that are whole blocks of a cache.
const MANY: usize = 1024;

/// What is not weights.
struct Cost {
    program: u64,
    /// Of the cache: whatever its length, and for each position.
    cache: (u64, u64),
    /// Of a batch: whatever its length, and for each token.
    batch: (u64, u64),
}

impl Cost {
    fn of(model: &Model, options: &Options) -> Result<Cost, Error> {
        let spec = model.spec();
        let cache = Cache::new(spec, options.cache, 0)?;
        // Positions come in blocks, of which the last is seldom full: the least is a whole one.
        let [none, least, many] = [0, 1, MANY].map(|n| cache.bytes_for(n) as u64);
        let wide = model.widest() as u64;
        let (dim, vocab) = (spec.dim as u64, spec.vocab_size as u64);
        // The residual stream, its normed copy, what a mixer makes and its parts; then a few of the widest rows, as
        // numbers and as bytes with scales. Each thread unpacks a strip of 16 rows to numbers, or a panel
        // of 32 to bytes, twice.
        let token = 4 * (6 * dim + 6 * wide);
        // Logits are computed in one place and kept in another, those of proposed tokens too.
        let fixed = 2 * 4 * vocab * (1 + options.draft_max as u64) + options.threads as u64 * 16 * wide * 5;
        Ok(Cost {
            program: resident_bytes().unwrap_or(24 << 20) + SLACK,
            cache: (least, (many - none) / MANY as u64),
            batch: (fixed, token),
        })
    }

    fn cache(&self, context: usize) -> u64 {
        self.cache.0 + self.cache.1.saturating_mul(context as u64)
    }

    fn activations(&self, batch: usize) -> u64 {
        self.batch.0 + self.batch.1.saturating_mul(batch as u64)
    }

    fn total(&self, context: usize, batch: usize) -> u64 {
        self.program.saturating_add(self.cache(context)).saturating_add(self.activations(batch))
    }

    /// Within a budget that holds all weights, a sequence whose length nobody said is as long as there is place for.
    fn shorten(&self, plan: &mut Plan, options: &Options, limit: Option<u64>) {
        let (Some(limit), None) = (limit, options.context) else { return };
        let left = limit.saturating_sub(self.total(0, plan.batch).saturating_add(plan.weight_bytes));
        let fit = left.checked_div(self.cache.1).unwrap_or(u64::MAX);
        plan.context = plan.context.min(usize::try_from(fit).unwrap_or(usize::MAX));
        plan.cache_bytes = self.cache(plan.context);
    }

    /// As long a sequence and as large a batch as leave most of `limit` to the weights. Each batch reads all streamed
    /// weights once, so it is worth some memory.
    fn fit(&self, plan: &mut Plan, options: &Options, limit: u64) {
        if options.context.is_none() {
            let few = plan.context.min(FEW_POSITIONS);
            let left = limit.saturating_sub(self.total(few, FEW_TOKENS)) / 4;
            let more = left.checked_div(self.cache.1).unwrap_or(u64::MAX);
            plan.context = plan.context.min(few.saturating_add(usize::try_from(more).unwrap_or(usize::MAX)));
        }
        let left = limit.saturating_sub(self.total(plan.context, FEW_TOKENS)) / 4;
        let more = usize::try_from(left / self.batch.1.max(1)).unwrap_or(usize::MAX);
        plan.batch = plan.batch.min(FEW_TOKENS.saturating_add(more)).min(plan.context.max(1));
        (plan.cache_bytes, plan.activation_bytes) = (self.cache(plan.context), self.activations(plan.batch));
    }
}

/// Memory that this process takes now.
#[cfg(target_os = "linux")]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    field(&status, "VmRSS:")
}

/// Memory that this process takes now, where the system says it.
#[cfg(not(target_os = "linux"))]
pub fn resident_bytes() -> Option<u64> {
    None
}

/// Memory that could be used: of the machine, or of the control group that the process is in.
#[cfg(target_os = "linux")]
pub fn available_bytes() -> Option<u64> {
    let free = field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(group_limit().map_or(free, |limit| limit.min(free)))
}

/// Memory that could be used, where the system says it.
#[cfg(not(target_os = "linux"))]
pub fn available_bytes() -> Option<u64> {
    None
}

/// A line such as `VmRSS:   1234 kB`.
#[cfg(target_os = "linux")]
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit of the control groups that this process is in, of both versions of the interface.
#[cfg(target_os = "linux")]
fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container the path is often the host's; the root is what there is.
        let mut folder = Some(std::path::Path::new(path));
        while let Some(at) = folder {
            let file = std::path::Path::new(root).join(at.strip_prefix("/").unwrap_or(at)).join(file);
            if let Ok(limit) = std::fs::read_to_string(file).unwrap_or_default().trim().parse::<u64>() {
                least = Some(least.map_or(limit, |least| least.min(limit)));
            }
            folder = at.parent();
        }
    }
    least
}
