//! Speculative decoding gives what plain decoding gives: every tiny checkpoint that has a tokenizer, with guesses from the
//! text, of a draft model, and of drafters that are right or wrong on purpose. What is compared is the text, why and
//! when it ended, all bytes of the session afterwards (tokens, logits and cache) and the sampler's next draw.

mod common;

use common::{Expected, each, name};
use fonio_conformance::home;
use fonio_engine::{
    DraftModel, Drafter, Engine, Error, Finish, Limits, NGrams, Options, Sampler, SamplerOptions, Speculation,
};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Most tokens of a guess.
const MOST: usize = 6;
/// Tokens of a generation.
const TOKENS: usize = 24;

/// Everything that two generations behind each other leave.
#[derive(Debug, PartialEq)]
struct Outcome {
    text: String,
    ends: Vec<(usize, Finish)>,
    session: Bytes,
    draw: u32,
    error: Option<String>,
}

#[derive(PartialEq)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What was guessed, and what of it came true.
type Counts = (usize, usize);

/// Generates, adds some tokens to what there is, and generates again, with the same sampler and drafter.
fn run(
    engine: &Engine,
    prompt: &[u32],
    options: &SamplerOptions,
    limits: &Limits,
    mut speculation: Option<&mut Speculation<'_>>,
) -> (Outcome, Counts) {
    let mut session = engine.session().unwrap();
    let mut sampler = Sampler::new(options.clone());
    let mut outcome =
        Outcome { text: String::new(), ends: Vec::new(), session: Bytes(Vec::new()), draw: 0, error: None };
    let mut counts = (0, 0);
    for more in [prompt, &prompt[..3]] {
        let tokens = [session.tokens(), more].concat();
        let done =
            session.generate_with(&tokens, &mut sampler, limits, speculation.as_deref_mut(), |piece| {
                outcome.text += piece;
                ControlFlow::Continue(())
            });
        match done {
            Ok(done) => {
                outcome.ends.push((done.tokens, done.finish));
                counts = (counts.0 + done.proposed, counts.1 + done.accepted);
            }
            Err(e) => {
                outcome.error = Some(e.to_string());
                break;
            }
        }
    }
    outcome.session = Bytes(session.save().unwrap());
    outcome.draw = sampler.pick(&[0.0; 64], &[]);
    (outcome, counts)
}

/// A sequence that is known already, guessed with a wrong token at every `wrong`th place.
struct Known {
    sequence: Vec<u32>,
    wrong: usize,
}

impl Drafter for Known {
    fn begin(&mut self, _: &[u32]) -> Result<(), Error> {
        Ok(())
    }

    fn propose(&mut self, tokens: &[u32], most: usize) -> Result<Vec<u32>, Error> {
        let after = tokens.len()..(tokens.len() + most).min(self.sequence.len());
        Ok(after.map(|i| if i % self.wrong == 0 { 0 } else { self.sequence[i] }).collect())
    }
}

/// Guesses that no model takes: more than asked for, and tokens that there are not.
struct Hostile(u32);

impl Drafter for Hostile {
    fn begin(&mut self, _: &[u32]) -> Result<(), Error> {
        Ok(())
    }

    fn propose(&mut self, _: &[u32], most: usize) -> Result<Vec<u32>, Error> {
        self.0 += 1;
        Ok(if self.0.is_multiple_of(2) { vec![1; most + 9] } else { vec![3, u32::MAX, 3] })
    }
}

fn folder(name: &str) -> PathBuf {
    home::workspace().join("conformance/models").join(name)
}

fn open(model: &Path, threads: usize) -> Engine {
    Engine::open(model, Options { threads, ..Options::default() }).unwrap()
}

/// Greedy and seeded, with and without a penalty, narrow and wide.
fn samplings() -> Vec<SamplerOptions> {
    let seeded = SamplerOptions { seed: 5, temperature: 0.2, ..SamplerOptions::default() };
    vec![
        SamplerOptions::greedy(),
        SamplerOptions { repeat_penalty: 1.3, ..SamplerOptions::greedy() },
        seeded.clone(),
        SamplerOptions { temperature: 1.2, top_k: 0, top_p: 1.0, repeat_penalty: 1.1, ..seeded },
    ]
}

fn limits() -> Limits {
    Limits { max_tokens: TOKENS, stop: Vec::new(), ignore_eos: true }
}

/// A text that says everything several times.
fn prompt(model: &Path) -> Vec<u32> {
    Expected::read(model).tokens["tokens"][..6].repeat(3)
}

/// The tokens of a plain generation, that of the second turn included.
fn known(engine: &Engine, prompt: &[u32], options: &SamplerOptions) -> Vec<u32> {
    let mut session = engine.session().unwrap();
    let mut sampler = Sampler::new(options.clone());
    for more in [prompt, &prompt[..3]] {
        let tokens = [session.tokens(), more].concat();
        // Where a model has not enough positions, a part is known.
        let _ = session.generate(&tokens, &mut sampler, &limits(), |_| ControlFlow::Continue(()));
    }
    session.tokens().to_vec()
}

/// Compares one drafter with plain decoding and gives its counts.
fn same(
    what: &str,
    engine: &Engine,
    prompt: &[u32],
    options: &SamplerOptions,
    drafter: impl Drafter,
) -> Result<Counts, String> {
    let (want, none) = run(engine, prompt, options, &limits(), None);
    let mut speculation = Speculation::new(drafter, MOST);
    let (got, counts) = run(engine, prompt, options, &limits(), Some(&mut speculation));
    assert_eq!(none, (0, 0));
    if got == want {
        return Ok(counts);
    }
    let parts = (got.text == want.text, got.ends == want.ends, got.session == want.session);
    Err(format!("{what} at {} gives something else: (text, ends, session) {parts:?}", options.temperature))
}

/// All drafters on one model; says how much came true of what was looked up.
fn check(model: &Path, threads: usize, samplings: &[SamplerOptions]) -> Result<usize, String> {
    let engine = open(model, threads);
    let prompt = prompt(model);
    let mut looked_up = 0;
    for options in samplings {
        let sequence = known(&engine, &prompt, options);
        looked_up += same("look-up", &engine, &prompt, options, NGrams::new())?.1;
        for wrong in [2, 3, 5] {
            let known = Known { sequence: sequence.clone(), wrong };
            let (proposed, accepted) = same("a known text", &engine, &prompt, options, known)?;
            if accepted == 0 || accepted == proposed {
                return Err(format!("{accepted} of {proposed} guesses with errors were right"));
            }
        }
        same("a hostile drafter", &engine, &prompt, options, Hostile(0))?;
        let draft = DraftModel::new(&engine, &engine).map_err(|e| e.to_string())?;
        let (proposed, accepted) = same("its own draft", &engine, &prompt, options, draft)?;
        let greedy = *options == SamplerOptions::greedy();
        if greedy && (accepted != proposed || accepted < TOKENS) {
            return Err(format!("of its own {proposed} guesses {accepted} were right"));
        }
    }
    Ok(looked_up)
}

#[test]
fn guesses_change_nothing() {
    let (mut tried, mut looked_up) = (0, 0);
    each(|model| {
        if Engine::open(model, Options::default()).map_err(|e| e.to_string())?.tokenizer().is_err() {
            return Ok(());
        }
        tried += 1;
        let all = samplings();
        looked_up += usize::from(check(model, 1, &all)? > 0);
        check(model, 2, &all[2..3]).map_err(|e| format!("two threads: {e}")).map(|_| ())
    });
    if std::env::var_os("FONIO_TINY").is_none() {
        assert!(tried > 30 && looked_up > tried / 2, "{looked_up} of {tried} models repeat themselves");
    }
}

/// Models with the same vocabulary, of all kinds of states.
const PAIRS: [(&str, &str); 8] = [
    ("llama-gqa", "llama-rope3"),
    ("qwen3-tied", "qwen3-untied"),
    ("gemma2", "gemma"),
    ("mamba", "rwkv4"),
    ("rwkv4", "stablelm"),
    ("stablelm", "mamba"),
    ("mamba2", "mixtral"),
    ("rwkv7", "rwkv6"),
];

#[test]
fn another_model_drafts() {
    let (mut proposed, mut accepted) = (0, 0);
    for (target, draft) in PAIRS {
        let (model, draft) = (folder(target), open(&folder(draft), 1));
        let engine = open(&model, 2);
        for options in samplings() {
            let drafter = DraftModel::new(&draft, &engine).unwrap();
            let counts = same(target, &engine, &prompt(&model), &options, drafter).unwrap();
            (proposed, accepted) = (proposed + counts.0, accepted + counts.1);
        }
    }
    assert!(proposed > accepted, "{proposed} {accepted}");
}

#[test]
fn another_vocabulary_is_refused() {
    let (target, draft) = (open(&folder("llama-gqa"), 1), open(&folder("gemma"), 1));
    match DraftModel::new(&draft, &target) {
        Err(e @ Error::OtherVocabulary { .. }) => assert!(e.to_string().contains("vocabulary"), "{e}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("two vocabularies are one"),
    }
}

#[test]
fn a_draft_model_with_a_short_context_goes_quiet() {
    let model = folder("llama-gqa");
    let engine = open(&model, 1);
    let prompt = prompt(&model);
    for context in [4, prompt.len(), prompt.len() + 7] {
        let options = Options { threads: 1, context: Some(context), ..Options::default() };
        let draft = Engine::open(&model, options).unwrap();
        let drafter = DraftModel::new(&draft, &engine).unwrap();
        let (proposed, accepted) =
            same("short", &engine, &prompt, &SamplerOptions::greedy(), drafter).unwrap();
        assert_eq!(proposed, accepted);
        assert_eq!(proposed > 0, context > prompt.len(), "{context}: {proposed}");
    }
}

/// A guess never passes a limit: with a drafter that knows the text, and knows it beyond its end.
#[test]
fn ends_are_where_they_were() {
    for model in ["llama-gqa", "mamba", "gpt2"].map(folder) {
        let engine = open(&model, 1);
        let prompt = prompt(&model);
        let wide = SamplerOptions { temperature: 1.5, top_k: 0, top_p: 1.0, ..SamplerOptions::default() };
        let check = |options: &SamplerOptions, limits: &Limits| {
            let sequence = known(&engine, &prompt, options);
            let mut speculation = Speculation::new(Known { sequence, wrong: usize::MAX }, MOST);
            let (want, _) = run(&engine, &prompt, options, limits, None);
            let (got, (_, accepted)) = run(&engine, &prompt, options, limits, Some(&mut speculation));
            assert_eq!(got, want, "{}: {limits:?}", name(&model));
            (want, accepted)
        };
        for max_tokens in 1..10 {
            let (_, accepted) = check(&wide, &Limits { max_tokens, ..limits() });
            assert_eq!(accepted > 0, max_tokens > 2, "{max_tokens}");
        }
        let (plain, _) = check(&wide, &limits());
        let chars: Vec<char> = plain.text.chars().collect();
        for at in 2..8 {
            let stop = vec![chars[at..at + 3].iter().collect()];
            let (stopped, _) = check(&wide, &Limits { stop, ..limits() });
            assert_eq!(stopped.ends[0].1, Finish::Stop);
        }
        let ended = (0..400).filter(|&seed| {
            let (plain, accepted) =
                check(&SamplerOptions { seed, ..wide.clone() }, &Limits { ignore_eos: false, ..limits() });
            accepted > 0 && plain.ends[0].1 == Finish::EndOfText
        });
        assert!(ended.take(3).count() == 3, "{}: no seed ends a text", name(&model));
    }
}

#[test]
fn a_broken_off_generation_leaves_what_it_did() {
    let model = folder("rwkv4");
    let engine = open(&model, 1);
    let prompt = prompt(&model);
    let sequence = known(&engine, &prompt, &SamplerOptions::greedy());
    let broken = |mut speculation: Option<Speculation<'_>>| {
        let mut session = engine.session().unwrap();
        let mut sampler = Sampler::new(SamplerOptions::greedy());
        let mut pieces = 0;
        let done = session.generate_with(&prompt, &mut sampler, &limits(), speculation.as_mut(), |_| {
            pieces += 1;
            if pieces == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (done.unwrap().finish, session.save().unwrap())
    };
    let plain = broken(None);
    assert_eq!(plain.0, Finish::Cancelled);
    assert!(broken(Some(Speculation::new(Known { sequence, wrong: 7 }, MOST))) == plain);
}

#[test]
fn contexts_and_positions_end_where_they_did() {
    let model = folder("gpt2");
    let own = open(&model, 1).spec().context_len;
    let prompt: Vec<u32> =
        Expected::read(&model).tokens["tokens"].iter().copied().cycle().take(own - 9).collect();
    // With place for more than the model has positions for, plain decoding fails when it gets there.
    for (context, fails) in [(own, false), (own + 20, true)] {
        let options = Options { threads: 1, context: Some(context), ..Options::default() };
        let engine = Engine::open(&model, options).unwrap();
        let sequence = [known(&engine, &prompt, &SamplerOptions::greedy()), vec![1; 30]].concat();
        let (want, _) = run(&engine, &prompt, &SamplerOptions::greedy(), &limits(), None);
        let mut speculation = Speculation::new(Known { sequence, wrong: usize::MAX }, MOST);
        let (got, (_, accepted)) =
            run(&engine, &prompt, &SamplerOptions::greedy(), &limits(), Some(&mut speculation));
        assert_eq!(got, want);
        assert_eq!(want.ends.is_empty(), fails, "{:?}", want.error);
        assert!(accepted > 0 || fails);
    }
}

#[test]
fn one_token_at_a_time_leaves_no_place_for_guesses() {
    let model = folder("llama-gqa");
    let options = Options { threads: 1, batch: 1, ..Options::default() };
    let engine = Engine::open(&model, options).unwrap();
    let counts = same("single", &engine, &prompt(&model), &SamplerOptions::greedy(), NGrams::new()).unwrap();
    assert_eq!(counts, (0, 0));
}
