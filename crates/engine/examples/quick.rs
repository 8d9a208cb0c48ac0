//! quick
use fonio_engine::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let engine = Engine::open(a[1].as_ref(), Options::default()).unwrap();
    let t = engine.tokenizer().unwrap();
    let prompt = t.encode(&a[2], true, true).unwrap();
    let mut s = engine.session().unwrap();
    let mut sampler = Sampler::new(SamplerOptions::greedy());
    let g = s.generate(&prompt, &mut sampler, &Limits { max_tokens: 64, stop: vec![], ignore_eos: false }, |p| { eprint!("{p}"); std::ops::ControlFlow::Continue(()) }).unwrap();
    eprintln!("\n{g:?} prefill {:.1} t/s decode {:.1} t/s", g.prompt_tokens as f64 / g.prompt_time.as_secs_f64(), g.tokens as f64 / g.time.as_secs_f64());
}
