//! How text is split before BPE, by the names that GGUF files use (`tokenizer.ggml.pre`).
//!
//! A splitter is a list of steps; each cuts every piece that the steps before it left into matches and gaps. The
//! patterns are those of the models' own `tokenizer.json`, written in the syntax of [`crate::pattern`]: contractions
//! name both cases, and a final `|\s+` is left out where the gap is the same piece anyway.

use crate::Error;
use crate::pattern::Pattern;

/// One row of the table: everything that a name implies.
struct Row {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// A piece that is a token is taken whole, without merging.
    whole_words: bool,
    /// The model wants a begin token unless the file says otherwise.
    add_bos: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Match(&'static str),
    /// Runs of digits, in threes counted from the right.
    DigitTriples(Digits),
    /// White space at the end of a piece (`\s+$`).
    TrailingSpace,
}

/// Which runs are cut into threes, by the expression that says so in the model's `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Digits {
    /// All numbers.
    Numbers,
    /// Decimal digits …
    Decimal,
    /// … and only where no letter follows.
    Alone,
}

use Step::{DigitTriples, Match, TrailingSpace};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The letters of scripts with cases.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}",
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}",
    r"\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}",
    r"\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}",
    r"\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}",
    r"\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}",
    r"\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}",
    r"\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}",
    r"\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}",
    r"\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}",
    r"\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}",
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}",
    r"\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}",
    r"\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    r"]+"
);
const DEEPSEEK_PUNCTUATION: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const KANJI_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const EXAONE_MOE: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU_SCRIPTS: &str = concat!(
    r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|",
    r"[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|",
    r"[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+"
);
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const ASIAN: &str = concat!(
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}",
    r"\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}",
    r"\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+"
);
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const THREE_DIGITS: &str = r"[0-9][0-9][0-9]";
const BLOOM: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+";
const LINES: &str = r"[^\n]+|\n+";

const fn row(names: &'static [&'static str], steps: &'static [Step]) -> Row {
    Row { names, steps, whole_words: false, add_bos: false }
}

const fn whole(names: &'static [&'static str], steps: &'static [Step]) -> Row {
    Row { names, steps, whole_words: true, add_bos: false }
}

const fn whole_bos(names: &'static [&'static str], steps: &'static [Step]) -> Row {
    Row { names, steps, whole_words: true, add_bos: true }
}

static ROWS: &[Row] = &[
    row(&["default"], &[Match(r"[\p{P}\$\+<=>\^~\|]+"), Match(GPT2), Match(r"\p{N}+"), Match(THREE_DIGITS)]),
    row(
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
        ],
        &[Match(GPT2)],
    ),
    whole_bos(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[Match(LLAMA3)],
    ),
    row(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[Match(LLAMA3)]),
    whole(&["glm4", "glm5"], &[Match(LLAMA3)]),
    row(
        &[
            "qwen2",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "grok-2",
        ],
        &[Match(QWEN2)],
    ),
    row(&["qwen35"], &[Match(QWEN35)]),
    row(
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[Match(DIGIT), Match(GPT2)],
    ),
    row(
        &["deepseek-llm"],
        &[
            Match(r"[\r\n]"),
            Match(DEEPSEEK_LETTERS),
            Match(DEEPSEEK_PUNCTUATION),
            TrailingSpace,
            Match(DEEPSEEK_CJK),
            Match(r"\p{N}+"),
        ],
    ),
    row(
        &["deepseek-coder"],
        &[Match(r"[\r\n]"), Match(r"\s?\p{L}+"), Match(r"\s?\p{P}+"), Match(DEEPSEEK_CJK), Match(DIGIT)],
    ),
    row(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Match(r"\p{N}{1,3}"), Match(KANJI_KANA), Match(DEEPSEEK3)],
    ),
    row(&["falcon"], &[Match(FALCON_PUNCTUATION), Match(GPT2), Match(THREE_DIGITS)]),
    row(&["bloom", "poro-chat", "gpt3-finnish"], &[Match(BLOOM)]),
    row(&["viking"], &[Match(BLOOM), Match(DIGIT)]),
    whole_bos(&["tekken"], &[Match(TEKKEN)]),
    whole(&["granite-embed-multi-97m"], &[Match(GPT4O)]),
    row(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[Match(GPT4O)]),
    row(&["tiny_aya", "cohere2moe"], &[DigitTriples(Digits::Alone), Match(GPT4O)]),
    row(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Match(BAILING)]),
    row(&["seed-coder"], &[Match(SEED)]),
    row(&["laguna"], &[Match(LINES), Match(QWEN2)]),
    row(&["ufakzeka"], &[Match(UFAKZEKA)]),
    whole(&["minicpm5"], &[Match(r"\p{N}{1,3}"), Match(MINICPM5)]),
    row(&["jais-2"], &[Match(JAIS2)]),
    row(&["exaone-moe"], &[Match(EXAONE_MOE)]),
    row(&["kimi-k2"], &[Match(KIMI_K2)]),
    whole(&["youtu"], &[Match(YOUTU_SCRIPTS), Match(YOUTU)]),
    row(&["spark2_5"], &[Match(r"\p{N}{1,3}"), Match(KANJI_KANA), Match(SPARK), Match(DIGIT)]),
    row(&["afmoe"], &[DigitTriples(Digits::Numbers), Match(ASIAN), Match(DEEPSEEK3)]),
    row(&["superbpe"], &[Match(r"\p{N}+"), DigitTriples(Digits::Decimal)]),
    Row {
        names: &["chameleon"],
        steps: &[
            Match(r"<sentinel:[0-9]+>"),
            Match(r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Match(r"([\t\n]|    |  )"),
            Match(DIGIT),
            Match(r"[\p{P}!-/:-@\[-`{-~]"),
            Match(GPT2),
        ],
        whole_words: false,
        add_bos: true,
    },
    Row { names: ESCAPED, steps: &[Match(LINES)], whole_words: false, add_bos: true },
];

/// Those whose vocabularies spell spaces as ▁ and bytes as `<0xHH>`.
const ESCAPED: &[&str] = &["gemma4", "granite-embed-multi-311m", "sarvam-moe"];

/// A splitter, and how the tokens of its vocabularies are spelled.
#[derive(Debug)]
pub(crate) struct Pre {
    source: &'static [Step],
    steps: Vec<Compiled>,
    pub(crate) whole_words: bool,
    pub(crate) add_bos: bool,
    /// Runs of line ends that are tokens are taken whole.
    pub(crate) whole_lines: bool,
    /// Tokens spell spaces as ▁ …
    pub(crate) escape_spaces: bool,
    /// … or every byte in the byte alphabet.
    pub(crate) byte_alphabet: bool,
}

/// A step of a `tokenizer.json` pre-tokenizer.
pub(crate) enum Shape<'a> {
    /// Matches of this pattern and the gaps between them.
    Pattern(&'a str),
    /// The byte-level splitter's own pattern.
    Gpt2,
    /// Runs of punctuation (Unicode's and ASCII's).
    Punctuation,
}

/// Ways to write the contractions and counts that the table writes without flags.
const REWRITES: &[(&str, &str)] = &[
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"),
    ("'(?i:[sdmt]|ll|ve|re)", "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"),
    ("?+", "?"),
    ("++", "+"),
];

/// The name of the splitter with these steps, and whether it takes pieces that are tokens whole: the first of the table
/// that splits in the same way, with `whole_words` as wanted if there is one. Patterns that are written alike need no
/// compiling; others are compared by what they match.
pub(crate) fn recognise(shapes: &[Shape], whole_words: bool) -> Option<(&'static str, bool)> {
    let written: Vec<String> = shapes.iter().map(rewrite).collect();
    let rows = || {
        let same = |row: &&Row| row.steps.len() == shapes.len() && row.names != ESCAPED;
        ROWS.iter().filter(same)
    };
    let best = |alike: &dyn Fn(&Row) -> bool| {
        let mut found = rows().filter(|row| alike(row));
        let exact = found.clone().find(|row| row.whole_words == whole_words);
        let row = exact.or_else(|| found.next())?;
        Some((*row.names.first()?, row.whole_words))
    };
    let alike = |row: &Row| row.steps.iter().map(Step::written).eq(written.iter().map(String::as_str));
    if let Some(found) = best(&alike) {
        return Some(found);
    }
    let compile = |text: &str| match text {
        TRAILING | ALONE | TRIPLES => None,
        pattern => Pattern::new(pattern).ok(),
    };
    let steps: Vec<_> = written.iter().map(|text| (text, compile(text))).collect();
    if steps
        .iter()
        .any(|(text, compiled)| compiled.is_none() && ![TRAILING, ALONE, TRIPLES].contains(&text.as_str()))
    {
        return None;
    }
    best(&|row: &Row| {
        row.steps.iter().zip(&steps).all(|(step, (text, compiled))| match compiled {
            None => step.written() == text.as_str(),
            Some(compiled) => compile(step.written()).is_some_and(|own| own == *compiled),
        })
    })
}

const TRAILING: &str = r"\s+$";
const ALONE: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
const NUMBER_TRIPLES: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
const TRIPLES: &str = r"(?=(\d{3})+(?!\d))";
/// Matches that a gap would be as well.
const ANY_SPACE: &str = r"|\s+";

impl Step {
    /// The step as a `tokenizer.json` writes it.
    fn written(&self) -> &'static str {
        match self {
            Match(pattern) => bare(pattern),
            TrailingSpace => TRAILING,
            DigitTriples(Digits::Alone) => ALONE,
            DigitTriples(Digits::Decimal) => TRIPLES,
            DigitTriples(Digits::Numbers) => NUMBER_TRIPLES,
        }
    }
}

/// Without the last alternative, which takes the one space that all others leave.
fn bare(pattern: &str) -> &str {
    pattern.strip_suffix(ANY_SPACE).filter(|p| p.ends_with(r"|\s+(?!\S)")).unwrap_or(pattern)
}

fn rewrite(shape: &Shape) -> String {
    match shape {
        Shape::Gpt2 => GPT2.to_owned(),
        Shape::Punctuation => FALCON_PUNCTUATION.to_owned(),
        Shape::Pattern(p) => {
            let written = REWRITES.iter().fold((*p).to_owned(), |p, (from, to)| p.replace(from, to));
            bare(&written).to_owned()
        }
    }
}

#[derive(Debug, PartialEq)]
enum Compiled {
    Match(Pattern),
    DigitTriples(Digits),
    TrailingSpace,
}

impl Pre {
    pub(crate) fn by_name(name: &str) -> Result<Pre, Error> {
        let row = ROWS.iter().find(|row| row.names.contains(&name));
        let row = row.ok_or_else(|| Error::unsupported("pre-tokenizer", name))?;
        let compile = |step: &Step| {
            Ok(match step {
                Match(pattern) => Compiled::Match(Pattern::new(pattern)?),
                DigitTriples(digits) => Compiled::DigitTriples(*digits),
                TrailingSpace => Compiled::TrailingSpace,
            })
        };
        let escape_spaces = ESCAPED.contains(&name);
        Ok(Pre {
            source: row.steps,
            steps: row.steps.iter().map(compile).collect::<Result<_, Error>>()?,
            whole_words: row.whole_words,
            add_bos: row.add_bos && name != "sarvam-moe",
            whole_lines: escape_spaces && name != "sarvam-moe",
            escape_spaces,
            byte_alphabet: !escape_spaces,
        })
    }

    /// The steps as the regular expressions that other implementations take.
    pub(crate) fn patterns(&self) -> Vec<&'static str> {
        let pattern = |step: &'static Step| match step {
            Match(pattern) => *pattern,
            DigitTriples(Digits::Numbers) => NUMBER_TRIPLES,
            DigitTriples(Digits::Decimal) => TRIPLES,
            DigitTriples(Digits::Alone) => ALONE,
            TrailingSpace => TRAILING,
        };
        self.source.iter().map(pattern).collect()
    }

    /// Gives the pieces of `text` to `emit`, left to right, none empty.
    pub(crate) fn split(
        &self,
        text: &str,
        emit: &mut dyn FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        split(&self.steps, text, emit)
    }
}

fn split(
    steps: &[Compiled],
    text: &str,
    emit: &mut dyn FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some((step, later)) = steps.split_first() else {
        return if text.is_empty() { Ok(()) } else { emit(text) };
    };
    let mut next = |piece: &str| split(later, piece, emit);
    match step {
        Compiled::Match(pattern) => pattern.split(text, &mut next),
        Compiled::TrailingSpace => {
            let (body, space) = text.split_at_checked(text.trim_end().len()).unwrap_or((text, ""));
            next(body)?;
            next(space)
        }
        Compiled::DigitTriples(digits) => split_digits(*digits, text, &mut next),
    }
}

fn split_digits(
    digits: Digits,
    text: &str,
    emit: &mut dyn FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    let class = |c: char| match digits {
        Digits::Numbers => c.is_numeric(),
        Digits::Decimal | Digits::Alone => is_decimal(c),
    };
    let (mut gap, mut at) = (0, 0);
    while let Some(tail) = text.get(at..).filter(|tail| !tail.is_empty()) {
        let start = at + tail.find(class).unwrap_or(tail.len());
        let tail = text.get(start..).unwrap_or("");
        let len = tail.find(|c| !class(c)).unwrap_or(tail.len());
        let (run, after) = tail.split_at_checked(len).unwrap_or((tail, ""));
        at = start + len;
        if run.is_empty() || (digits == Digits::Alone && after.chars().next().is_some_and(is_word)) {
            continue;
        }
        if gap < start {
            emit(text.get(gap..start).unwrap_or(""))?;
        }
        gap = at;
        let count = run.chars().count();
        let mut from = 0;
        for (i, (at, c)) in run.char_indices().enumerate() {
            if (count - i - 1).is_multiple_of(3) {
                let end = at + c.len_utf8();
                emit(run.get(from..end).unwrap_or(""))?;
                from = end;
            }
        }
    }
    if gap < text.len() { emit(text.get(gap..).unwrap_or("")) } else { Ok(()) }
}

/// `\d`: of the numbers, letters are Roman ones and the rest are no part of words.
fn is_decimal(c: char) -> bool {
    is_word(c) && c.is_numeric() && !c.is_alphabetic()
}

/// `\w`
pub(crate) fn is_word(c: char) -> bool {
    regex_syntax::try_is_word_character(c).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_compiles_once() {
        let mut names: Vec<_> = ROWS.iter().flat_map(|row| row.names).collect();
        let n = names.len();
        for name in &names {
            Pre::by_name(name).unwrap();
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n);
        assert!(matches!(Pre::by_name("no such"), Err(Error::Unsupported { name, .. }) if name == "no such"));
    }

    /// What a name means, written as a `tokenizer.json`, is recognised as a name that means the same.
    #[test]
    fn every_row_is_recognised() {
        for row in ROWS.iter().filter(|row| row.names != ESCAPED) {
            let pre = Pre::by_name(row.names[0]).unwrap();
            let shapes: Vec<Shape> = pre.patterns().into_iter().map(Shape::Pattern).collect();
            let (name, whole_words) = recognise(&shapes, row.whole_words).unwrap();
            let found = Pre::by_name(name).unwrap();
            assert_eq!((found.steps, whole_words), (pre.steps, row.whole_words), "{:?}", row.names);
        }
    }

    /// As the files of some families write their patterns.
    #[test]
    fn published_spellings() {
        let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
        let llama3 = format!(
            r"{contractions}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let qwen2 = llama3.replace("{1,3}", "");
        let o200k = format!(
            r"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{contractions}?|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{contractions}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let cases: &[(&[Shape], bool, &str)] = &[
            (&[Shape::Pattern(&llama3)], true, "llama-bpe"),
            (&[Shape::Pattern(&llama3)], false, "dbrx"),
            (&[Shape::Pattern(&qwen2)], false, "qwen2"),
            // Taken whole or not: there is one name.
            (&[Shape::Pattern(&qwen2)], true, "qwen2"),
            (&[Shape::Pattern(&o200k)], false, "gpt-4o"),
            (&[Shape::Gpt2], false, "gpt-2"),
            (&[Shape::Pattern(gpt2)], false, "gpt-2"),
            (&[Shape::Pattern(r"\p{N}"), Shape::Gpt2], false, "starcoder"),
            (&[Shape::Punctuation, Shape::Gpt2, Shape::Pattern("[0-9][0-9][0-9]")], false, "falcon"),
            (&[Shape::Pattern(r"\d{1,3}(?=(?:\d{3})*\b)"), Shape::Pattern(&o200k)], false, "tiny_aya"),
            (&[Shape::Pattern(r"\p{N}+"), Shape::Pattern(r"(?=(\d{3})+(?!\d))")], false, "superbpe"),
            (&[Shape::Pattern(" ?[^(\\s|.,!?…。，、।۔،)]+")], false, "bloom"),
        ];
        for (shapes, whole_words, name) in cases {
            assert_eq!(recognise(shapes, *whole_words).map(|found| found.0), Some(*name));
        }
        assert_eq!(recognise(&[Shape::Pattern("x+")], false), None);
        assert_eq!(recognise(&[Shape::Pattern("(?<=a)b")], false), None);
    }

    #[test]
    fn digit_triples_count_from_the_right() {
        let mut pieces = Vec::new();
        fn add(pieces: &mut Vec<String>) -> impl FnMut(&str) -> Result<(), Error> {
            |p| {
                pieces.push(p.to_owned());
                Ok(())
            }
        }
        split_digits(Digits::Numbers, "ab 1234567x12 123", &mut add(&mut pieces)).unwrap();
        assert_eq!(pieces, ["ab ", "1", "234", "567", "x", "12", " ", "123"]);
        pieces.clear();
        split_digits(Digits::Alone, "ab 1234567x12 1234²5", &mut add(&mut pieces)).unwrap();
        assert_eq!(pieces, ["ab 1234567x", "12", " ", "1", "234", "²", "5"]);
    }

    #[test]
    fn pieces_are_the_text() {
        let text = "I'M  here\n\n\t x 1234567 ß٣٤٥٦ 日本 क़ 🦀!?  ";
        for name in ROWS.iter().flat_map(|row| row.names) {
            let mut joined = String::new();
            let add = &mut |p: &str| {
                assert!(!p.is_empty());
                joined.push_str(p);
                Ok(())
            };
            Pre::by_name(name).unwrap().split(text, add).unwrap();
            assert_eq!(joined, text, "{name}");
        }
    }
}
