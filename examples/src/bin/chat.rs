//! A chat with one model: a folder or a hub id, and the reply as it comes. `chat data/model "Tell me a story."`

use std::io::Write as _;
use std::ops::ControlFlow;

use anyhow::Context as _;
use model_qwen::{ChatModel, LoadOptions, ReplyOptions, parse_device};
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (model, prompt) = (args.next().zip(args.next())).context("usage: chat MODEL PROMPT")?;
    let chat = ChatModel::load(&model, &LoadOptions::default(), &parse_device("auto")?)?;
    let messages = [json!({"role": "user", "content": prompt})];
    let mut out = std::io::stdout();
    chat.reply(&messages, &ReplyOptions::default(), |text| {
        match write!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    Ok(writeln!(out)?)
}
