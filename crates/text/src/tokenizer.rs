//! The tokenizer: special tokens are cut out of the text, the rest goes through the model's algorithm.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::bpe::Bpe;
use crate::charsmap::Charsmap;
use crate::hash::{Hasher, Table};
use crate::normalize::Normalizer;
use crate::pre::Pre;
use crate::rwkv::{self, Rwkv};
use crate::special::{Entry, Part, Specials};
use crate::spm::Spm;
use crate::unigram::{Prefix, Unigram};
use crate::wordpiece::WordPiece;
use crate::{DecodeStream, Error, TokenType, Vocab, bytes, folder, json};

/// Bytes to token ids and back. Cloning shares the tables.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokens: Tokens,
    model: Model,
    normalizer: Normalizer,
    specials: Specials,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    ends: BTreeSet<u32>,
}

#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    Spm(Spm),
    WordPiece(WordPiece),
    Unigram(Unigram),
    Rwkv(Rwkv),
}

/// Where a stretch of plain text stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    /// At the beginning.
    Start,
    /// After a special token.
    AfterSpecial,
}

/// Tokens by text and by id.
#[derive(Debug)]
pub(crate) struct Tokens {
    vocab: Arc<Vocab>,
    table: Table,
    /// Tokens that are control by their name, whatever their type says.
    controls: BTreeSet<u32>,
    pub(crate) unk: Option<u32>,
    /// Bytes of the longest token.
    pub(crate) longest: usize,
}

impl Tokens {
    fn new(vocab: Arc<Vocab>) -> Tokens {
        let hasher = Hasher::new();
        let named = || (0u32..).zip(&vocab.tokens).filter(|(_, text)| !text.is_empty());
        let entries: Vec<_> = named().map(|(id, text)| (hasher.hash(text.as_bytes()), id)).collect();
        let longest = named().map(|(_, text)| text.len()).max().unwrap_or(0);
        // Of equal texts the last one counts, as in a map that is filled in order.
        let table = Table::build(hasher, &entries, true, |a, b| {
            vocab.tokens.get(a as usize).is_some()
                && vocab.tokens.get(a as usize) == vocab.tokens.get(b as usize)
        });
        Tokens { unk: vocab.unk, vocab, table, controls: BTreeSet::new(), longest }
    }

    /// The token with exactly this text.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let hash = self.table.hasher.hash(text.as_bytes());
        self.table.get(hash, |i| self.vocab.tokens.get(i as usize).is_some_and(|t| t == text))
    }

    /// The token with exactly this text, if plain text may become it.
    pub(crate) fn plain_id(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|&id| {
            matches!(self.kind(id), TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
        })
    }

    pub(crate) fn kind(&self, id: u32) -> TokenType {
        if self.controls.contains(&id) { TokenType::Control } else { self.vocab.token_type(id) }
    }

    pub(crate) fn score(&self, id: u32) -> f32 {
        self.vocab.scores.as_deref().and_then(|s| s.get(id as usize)).copied().unwrap_or(0.0)
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.vocab.tokens.get(id as usize).map(String::as_str)
    }

    /// Appends the byte tokens of text that is no token; without them the unknown token, once a character.
    pub(crate) fn push_bytes(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        for c in text.chars() {
            let start = out.len();
            for b in c.encode_utf8(&mut [0; 4]).bytes() {
                match self.id(&format!("<0x{b:02X}>")) {
                    Some(id) => out.push(id),
                    None => {
                        out.truncate(start);
                        out.push(self.unk.ok_or_else(|| Error::Unencodable(c.to_string()))?);
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Names of tokens that end a turn or a text in the families that we know of. A token with such a name counts as
/// control even if a converter wrote it as text.
const END_NAMES: [&str; 20] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Names that end a text only where the vocabulary says that they are control tokens: elsewhere they are markup. The
/// later ones are what code models write when they go on to another file.
const END_NAMES_IF_CONTROL: [&str; 12] = [
    "</s>",
    "<eos>",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

fn find_ends(tokens: &mut Tokens, vocab: &Vocab, eos: Option<u32>) -> BTreeSet<u32> {
    let mut ends: BTreeSet<u32> = vocab.extra_eos.iter().copied().collect();
    ends.extend([eos, vocab.eot, vocab.eom].into_iter().flatten());
    let named: Vec<u32> = END_NAMES.iter().filter_map(|name| tokens.id(name)).collect();
    ends.extend(&named);
    tokens.controls.extend(named);
    for id in END_NAMES_IF_CONTROL.iter().filter_map(|name| tokens.id(name)) {
        if tokens.kind(id) == TokenType::Control {
            ends.insert(id);
        }
    }
    // Where calls and returns have their own ends, <|end|> only separates messages.
    let has = |name: &str| tokens.id(name).is_some();
    let calls = has("<|call|>") || has("<|calls|>");
    if calls
        && (has("<|return|>") || has("<|flush|>"))
        && let Some(end) = tokens.id("<|end|>")
        && eos != Some(end)
    {
        ends.remove(&end);
    }
    ends
}

fn find_specials(tokens: &Tokens, vocab: &Vocab) -> Specials {
    let [lstrip, rstrip, single] =
        [&vocab.lstrip, &vocab.rstrip, &vocab.single_word].map(|ids| ids.iter().collect::<BTreeSet<_>>());
    let mut entries = Vec::new();
    for (id, text) in vocab.tokens.iter().enumerate() {
        let id = id as u32;
        let control = match tokens.kind(id) {
            TokenType::Control | TokenType::Unknown => true,
            // A unigram model has them among its pieces.
            TokenType::UserDefined if vocab.model != "t5" => false,
            _ => continue,
        };
        let (lstrip, rstrip) = (lstrip.contains(&id), rstrip.contains(&id));
        let single_word = single.contains(&id);
        entries.push(Entry { text: text.clone(), id, control, lstrip, rstrip, single_word });
    }
    Specials::new(entries)
}

impl Tokenizer {
    /// Builds the tokenizer of a vocabulary, such as a GGUF file's.
    ///
    /// # Errors
    /// `Corrupt` if the parts disagree, `Unsupported` names a model or pre-tokenizer that is not known.
    pub fn from_vocab(mut vocab: Vocab) -> Result<Tokenizer, Error> {
        vocab.check()?;
        let n = vocab.tokens.len() as u32;
        let default = |id: u32| (id < n).then_some(id);
        let mut add_bos = vocab.add_bos.unwrap_or(false);
        let (mut bos, mut eos) = (vocab.bos, vocab.eos);
        let kind = vocab.model.clone();
        let mut add_eos = vocab.add_eos.unwrap_or(false);
        match kind.as_str() {
            "llama" => {
                bos = bos.or(default(1));
                eos = eos.or(default(2));
                vocab.unk = vocab.unk.or(default(0));
                add_bos = vocab.add_bos.unwrap_or(true);
            }
            // BERT's frame is part of the model: [CLS] text [SEP].
            "bert" => {
                bos = vocab.cls.or(bos).or(default(101));
                eos = vocab.sep.or(eos).or(default(102));
                vocab.unk = vocab.unk.or(default(100));
                (add_bos, add_eos) = (true, true);
            }
            "t5" => {
                eos = eos.or(default(1));
                vocab.unk = vocab.unk.or(default(2));
                add_eos = vocab.add_eos.unwrap_or(true);
            }
            "gpt2" | "gemma4" | "rwkv" => {}
            other => return Err(Error::unsupported("tokenizer model", other)),
        }
        let vocab = Arc::new(vocab);
        let charsmap = vocab.precompiled_charsmap.as_deref().map(Charsmap::parse).transpose()?;
        let normalizer = Normalizer::parse(vocab.normalizer.as_deref(), charsmap.clone())?;
        let model = match kind.as_str() {
            "bert" => Model::WordPiece(WordPiece::new(&vocab)?),
            "llama" => Model::Spm(Spm { prefix: Prefix::new(&vocab, true)? }),
            "t5" => Model::Unigram(Unigram::new(&vocab, charsmap.filter(|_| !normalizer.has_charsmap()))?),
            "rwkv" => Model::Rwkv(Rwkv::new(&vocab)?),
            _ => {
                let name =
                    if kind == "gemma4" { "gemma4" } else { vocab.pre.as_deref().unwrap_or("default") };
                let pre = Pre::by_name(name)?;
                add_bos = vocab.add_bos.unwrap_or(pre.add_bos);
                Model::Bpe(Bpe::new(vocab.clone(), pre)?)
            }
        };
        let mut tokens = Tokens::new(vocab.clone());
        let ends = find_ends(&mut tokens, &vocab, eos);
        let specials = find_specials(&tokens, &vocab);
        let inner = Inner { tokens, model, normalizer, specials, bos, eos, add_bos, add_eos, ends };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Reads a Hugging Face folder: `tokenizer.json` or `tokenizer.model`, and the settings beside it.
    ///
    /// # Errors
    /// `Io` if the folder has neither; `Corrupt`, `Unsupported` and `Limit` name the file and the reason.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer, Error> {
        Tokenizer::from_vocab(folder::load(dir)?)
    }

    /// The vocabulary as a GGUF file holds it: that of llama.cpp's converter, with everything stated that this
    /// tokenizer would otherwise assume.
    ///
    /// # Errors
    /// `Unsupported` if GGUF cannot express it.
    pub fn to_vocab(&self) -> Result<Vocab, Error> {
        let mut vocab = self.vocab().clone();
        vocab.bos = self.inner.bos;
        vocab.eos = self.inner.eos;
        vocab.add_bos = Some(self.inner.add_bos);
        vocab.add_eos = Some(self.inner.add_eos);
        Ok(vocab)
    }

    /// The vocabulary as plain data.
    pub fn vocab(&self) -> &Vocab {
        &self.inner.tokens.vocab
    }

    /// The ids of a text.
    ///
    /// `add_special` adds the begin and end tokens that the model wants. `parse_special` turns the spelling of control
    /// tokens into those tokens: only for text that the caller trusts, such as a rendered chat template.
    ///
    /// # Errors
    /// `Unencodable` if the vocabulary cannot express a character, `Limit` above 2³⁰ bytes of text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, Error> {
        let inner = &*self.inner;
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        if add_special && inner.add_bos {
            out.extend(inner.bos);
        }
        let mut place = Place::Start;
        inner.specials.split(text, parse_special, |part| {
            match part {
                Part::Token(id) => out.push(id),
                Part::Text(plain) => {
                    let plain = &inner.normalizer.apply(plain)?;
                    match &inner.model {
                        Model::Bpe(bpe) => bpe.encode(&inner.tokens, plain, &mut out)?,
                        Model::WordPiece(wordpiece) => wordpiece.encode(&inner.tokens, plain, &mut out)?,
                        Model::Spm(spm) => spm.encode(&inner.tokens, plain, place, &mut out)?,
                        Model::Unigram(unigram) => unigram.encode(&inner.tokens, plain, place, &mut out)?,
                        Model::Rwkv(rwkv) => rwkv.encode(&inner.tokens, plain, &mut out)?,
                    }
                }
            }
            place = Place::AfterSpecial;
            Ok(())
        })?;
        if add_special && inner.add_eos {
            out.extend(inner.eos);
        }
        Ok(out)
    }

    /// The text of ids. Bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary are nothing. The space that
    /// encoding put before the text is taken off again. `skip_special` leaves control and unknown tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = Vec::new();
        for &id in ids {
            let kind = self.inner.tokens.kind(id);
            if skip_special && matches!(kind, TokenType::Control | TokenType::Unknown) {
                continue;
            }
            text.extend_from_slice(&self.token_bytes(id));
        }
        let prefixed = match &self.inner.model {
            Model::Spm(spm) => spm.prefix != Prefix::Never,
            Model::Unigram(unigram) => unigram.prefix != Prefix::Never,
            Model::WordPiece(_) => true,
            Model::Bpe(_) | Model::Rwkv(_) => false,
        };
        if prefixed && text.first() == Some(&b' ') {
            text.remove(0);
        }
        String::from_utf8(text).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// Decodes a continuation token by token. Unlike [`decode`](Self::decode) it keeps a leading space: the text before
    /// it is not known to end with one.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// The bytes that a token stands for; nothing for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        let Some(text) = self.inner.tokens.text(id) else { return Cow::Borrowed(&[]) };
        match self.inner.tokens.kind(id) {
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => {
                Cow::Borrowed(text.as_bytes())
            }
            TokenType::Byte => match parse_byte(text) {
                Some(b) => Cow::Owned(vec![b]),
                None => Cow::Borrowed(text.as_bytes()),
            },
            TokenType::Normal | TokenType::Unused => match &self.inner.model {
                Model::Bpe(bpe) if bpe.byte_alphabet() => Cow::Owned(bytes::decode(text)),
                Model::Rwkv(_) => Cow::Owned(rwkv::unescape(text)),
                _ if text.contains('\u{2581}') => Cow::Owned(text.replace('\u{2581}', " ").into_bytes()),
                _ => Cow::Borrowed(text.as_bytes()),
            },
        }
    }

    /// The text of a token as the vocabulary spells it.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.inner.tokens.text(id)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab().tokens.len()
    }

    /// The token that the vocabulary spells so.
    pub fn token_to_id(&self, text: &str) -> Option<u32> {
        self.inner.tokens.id(text)
    }

    /// Whether the token is structure, not text.
    pub fn is_control(&self, id: u32) -> bool {
        self.inner.tokens.kind(id) == TokenType::Control
    }

    /// Whether generation stops at this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.inner.ends.contains(&id)
    }

    /// All tokens at which generation stops.
    pub fn end_of_generation(&self) -> impl Iterator<Item = u32> + '_ {
        self.inner.ends.iter().copied()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// Whether the model wants [`bos`](Self::bos) before a text.
    pub fn add_bos(&self) -> bool {
        self.inner.add_bos && self.inner.bos.is_some()
    }

    /// The chat template that came with the vocabulary, as source.
    pub fn chat_template(&self) -> Option<&str> {
        self.vocab().chat_template.as_deref()
    }
}

/// The byte of `<0xHH>`.
fn parse_byte(text: &str) -> Option<u8> {
    let hex = text.get(3..5).filter(|_| json::is_byte_token(text))?;
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm() -> Tokenizer {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
        let mut types = vec![2, 3, 3];
        tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
        types.extend([6; 256]);
        let text = ["▁", "a", "b", "ab", "▁ab", "aba", "<", "s", ">", "<s", "s>", "<x>"];
        tokens.extend(text.map(String::from));
        types.extend([1; 12]);
        if let Some(last) = types.last_mut() {
            *last = 4;
        }
        let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
        let vocab = Vocab {
            model: "llama".into(),
            tokens,
            token_types: Some(types),
            scores: Some(scores),
            ..Vocab::default()
        };
        Tokenizer::from_vocab(vocab).unwrap()
    }

    fn texts(t: &Tokenizer, ids: &[u32]) -> Vec<String> {
        ids.iter().map(|&i| t.token_text(i).unwrap().to_owned()).collect()
    }

    #[test]
    fn spm_merges_by_score_and_falls_back_to_bytes() {
        let t = spm();
        let ids = t.encode("ab aba é", true, false).unwrap();
        assert_eq!(texts(&t, &ids), ["<s>", "▁ab", "▁ab", "a", "▁", "<0xC3>", "<0xA9>"]);
        assert_eq!(t.decode(&ids, true), "ab aba é");
        assert!(t.add_bos() && t.is_end_of_generation(2) && t.is_control(1) && !t.is_control(260));
    }

    #[test]
    fn text_never_becomes_a_control_token() {
        let t = spm();
        let plain = t.encode("<s>a<x>b", false, false).unwrap();
        assert_eq!(texts(&t, &plain), ["▁", "<s", ">", "a", "<x>", "▁", "b"]);
        let parsed = t.encode("<s>a", false, true).unwrap();
        assert_eq!(texts(&t, &parsed), ["<s>", "▁", "a"]);
    }

    fn bpe() -> Tokenizer {
        let mut tokens: Vec<String> = (0..=255u8).map(|b| bytes::to_char(b).to_string()).collect();
        tokens.extend(["Ġa", "bc", "abc", "<|im_end|>"].map(String::from));
        let merges = ["Ġ a", "b c", "a bc"].map(String::from).to_vec();
        let vocab = Vocab {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens,
            merges: Some(merges),
            ..Vocab::default()
        };
        Tokenizer::from_vocab(vocab).unwrap()
    }

    #[test]
    fn bpe_merges_by_rank() {
        let t = bpe();
        let ids = t.encode("abc abc<|im_end|>", false, true).unwrap();
        assert_eq!(texts(&t, &ids), ["abc", "Ġa", "bc", "<|im_end|>"]);
        assert!(t.is_end_of_generation(259) && t.is_control(259));
        assert_eq!(t.decode(&ids, true), "abc abc");
        assert_eq!(t.decode(&ids, false), "abc abc<|im_end|>");
    }

    #[test]
    fn streams_are_whole_characters() {
        let t = bpe();
        let text = "aé🦀bc\u{301}";
        let ids = t.encode(text, false, false).unwrap();
        let mut stream = t.decode_stream();
        let mut out = String::new();
        for id in ids {
            if let Some(chunk) = stream.push(id) {
                assert!(!chunk.is_empty() && !chunk.contains('\u{fffd}'));
                out.push_str(chunk);
            }
        }
        assert_eq!((out.as_str(), stream.finish()), (text, None));
        // Broken sequences: the same as decoding at once.
        for broken in [
            &b"\xf0\x9f"[..],
            b"\xe2\x28\xa1",
            b"\xff\xc3",
            b"a\xf0\x9f\xa6b",
            b"\xed\xa0\x80x",
            b"\xc3\xc3\xa9",
        ] {
            let ids: Vec<u32> = broken.iter().map(|&b| u32::from(b)).collect();
            let mut stream = t.decode_stream();
            let mut out = String::new();
            for &id in &ids {
                out.push_str(stream.push(id).unwrap_or(""));
            }
            out.push_str(stream.finish().unwrap_or(""));
            assert_eq!(out, t.decode(&ids, false), "{broken:x?}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        let base = Vocab { model: "llama".into(), tokens: vec!["a".into()], ..Vocab::default() };
        let bad = [
            Vocab { tokens: vec![], ..base.clone() },
            Vocab { scores: Some(vec![]), ..base.clone() },
            Vocab { scores: Some(vec![f32::NAN]), ..base.clone() },
            Vocab { token_types: Some(vec![1, 1]), ..base.clone() },
            Vocab { bos: Some(1), ..base.clone() },
            Vocab { model: "gpt2".into(), ..base.clone() },
        ];
        for vocab in bad {
            assert!(matches!(Tokenizer::from_vocab(vocab.clone()), Err(Error::Corrupt { .. })), "{vocab:?}");
        }
        let unknown = Vocab { model: "abacus".into(), ..base };
        assert!(matches!(Tokenizer::from_vocab(unknown), Err(Error::Unsupported { .. })));
    }
}
