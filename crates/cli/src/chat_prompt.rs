//! From a conversation to the text and tokens that a model continues.

use fonio_engine::Engine;
use fonio_text::{ChatTemplate, Message};

/// How a model wants a conversation written.
pub struct ChatPrompt {
    /// The model's own template; without one, roles are written out.
    template: Option<ChatTemplate>,
    bos: String,
    eos: String,
}

impl ChatPrompt {
    /// The model's way.
    pub fn new(engine: &Engine) -> anyhow::Result<ChatPrompt> {
        let tokenizer = engine.tokenizer()?;
        let text =
            |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_owned();
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        Ok(ChatPrompt { template: engine.chat_template()?, bos, eos })
    }

    /// Whether the model has a template of its own.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Texts that end an answer beside the model's own tokens: without a template, what begins the next turn.
    pub fn stops(&self) -> &'static [&'static str] {
        if self.has_template() { &[] } else { &["\nUser:"] }
    }

    /// The tokens that the answer follows.
    pub fn encode(&self, engine: &Engine, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let tokenizer = engine.tokenizer()?;
        let Some(template) = &self.template else {
            return Ok(tokenizer.encode(&plain(messages), true, false)?);
        };
        let render = |messages: &[Message]| {
            template.render(messages, true, &self.bos, &self.eos, &serde_json::Map::new())
        };
        let text = match (render(messages), without_system(messages)) {
            (Ok(text), _) => text,
            // Some templates refuse a system message; its words then begin the user's first one.
            (Err(_), Some(merged)) => render(&merged)?,
            (Err(e), None) => return Err(e.into()),
        };
        // Templates write the beginning of text themselves where they want it.
        let mut tokens = tokenizer.encode(&text, false, true)?;
        if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos())
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }
}

/// A conversation for models that were never taught any form of it.
fn plain(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        text += &match message.role.as_str() {
            "system" => format!("{}\n\n", message.content),
            "user" => format!("User: {}\n", message.content),
            _ => format!("Assistant: {}\n", message.content.trim()),
        };
    }
    text + "Assistant:"
}

fn without_system(messages: &[Message]) -> Option<Vec<Message>> {
    let (system, rest) = messages.split_first().filter(|(first, _)| first.role == "system")?;
    let (first, rest) = rest.split_first()?;
    let mut merged =
        vec![Message::new(first.role.as_str(), format!("{}\n\n{}", system.content, first.content))];
    merged.extend_from_slice(rest);
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_without_a_template_are_readable() {
        let messages = [
            Message::new("system", "Be kind."),
            Message::new("user", "Hi"),
            Message::new("assistant", " Hello!\n"),
            Message::new("user", "Bye"),
        ];
        assert_eq!(plain(&messages), "Be kind.\n\nUser: Hi\nAssistant: Hello!\nUser: Bye\nAssistant:");
        let merged = without_system(&messages).unwrap();
        assert_eq!((merged.len(), merged[0].content.as_str()), (3, "Be kind.\n\nHi"));
        assert!(without_system(&messages[1..]).is_none());
    }
}
