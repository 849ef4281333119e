//! One completion, from the request to the last chunk.

use super::endpoint::{Events, Path};
use super::fault::Fault;
use super::markers;
use super::model::Model;
use super::outgoing::{Outgoing, Stop};
use super::stops::Stops;
use super::way::Way;
use crate::wire::typed::{CompletionChunk, CompletionRequest, FinishReason, Message};
use serde_json::{Value, json};

/// The most stop texts that are sent to an endpoint; all of them are looked for here.
const STOPS_SENT: usize = 4;

/// Streams a completion. Returns the last message, and the rest of the stream if the engine has finished.
///
/// # Errors
///
/// Why there is none.
pub(super) async fn run<'a>(
    model: &'a Model,
    completion: &CompletionRequest,
    out: &mut Outgoing,
) -> Result<(Message, Option<Events<'a>>), Stop> {
    let (way, mut events) = out.unless_stopped(open(model, completion)).await??;
    let forbidden = markers::forbidden(model.family).map(str::to_owned);
    let mut stops = Stops::new(completion.stop.iter().cloned().chain(forbidden));
    let (mut text, mut index) = (String::new(), 0);
    let chunk =
        |index, text, finish| Message::CompletionChunk(CompletionChunk { id: completion.id, index, text, finish });
    let finish = loop {
        let Some(piece) = out.unless_stopped(events.next()).await?? else { break Some(FinishReason::Stop) };
        text += &stops.push(&piece.text);
        if stops.has_ended() {
            break None;
        }
        if let Some(finish) = piece.finish {
            break Some(finish);
        }
        if out.wants_stream() && !text.is_empty() {
            out.send(&chunk(index, std::mem::take(&mut text), None)).await?;
            index += 1;
        }
    };
    text += &stops.rest();
    if way != Way::Suffix || !completion.suffix.is_empty() {
        model.way_works(way);
    }
    let last = chunk(index, text, finish.or(Some(FinishReason::Stop)));
    // At a stop text of ours the engine goes on: its stream is dropped.
    Ok((last, finish.map(|_| events)))
}

/// Sends the request in the way that works.
async fn open<'a>(model: &'a Model, completion: &CompletionRequest) -> Result<(Way, Events<'a>), Fault> {
    let mut way = model.best_way().await?;
    let (mut suspects, mut first_fault) = (Vec::new(), None);
    loop {
        let (path, body) = body(model, completion, way);
        let fault = match model.endpoint.post(path, &body).await {
            Ok(events) => {
                model.way_was_taken(&suspects);
                return Ok((way, events));
            }
            Err(fault) => fault,
        };
        let Some((next, is_suspect)) = model.way_after(way, &fault) else {
            return Err(first_fault.unwrap_or(fault));
        };
        if is_suspect {
            suspects.push(way);
            first_fault.get_or_insert(fault);
        }
        way = next;
    }
}

fn body(model: &Model, completion: &CompletionRequest, way: Way) -> (Path, Value) {
    let prefix = end_of(&completion.prefix, model.context.0);
    let suffix = start_of(&completion.suffix, model.context.1);
    let mut body = json!({ "model": model.name, "stream": true });
    let mut set = |name: &str, value: Value| _ = body.as_object_mut().map(|body| body.insert(name.to_owned(), value));
    if let Some(temperature) = completion.temperature {
        // As it was written: 0.2 as an f32 is a little more as an f64.
        set("temperature", temperature.to_string().parse::<f64>().map_or(Value::Null, Value::from));
    }
    let stops: Vec<&String> = completion.stop.iter().filter(|stop| !stop.is_empty()).take(STOPS_SENT).collect();
    if !stops.is_empty() {
        set("stop", json!(stops));
    }
    if way == Way::Infill {
        set("input_prefix", prefix.into());
        set("input_suffix", suffix.into());
        set("prompt", "".into());
        set("n_predict", completion.max_tokens.into());
        return (Path::Infill, body);
    }
    set("max_tokens", completion.max_tokens.into());
    match (way, model.family) {
        (Way::Markers, Some(family)) => set("prompt", family.prompt(prefix, suffix).into()),
        _ => set("prompt", prefix.into()),
    }
    if way == Way::Suffix && !suffix.is_empty() {
        set("suffix", suffix.into());
    }
    (Path::Completions, body)
}

/// The last `max` bytes of a text, or fewer, so that no character is cut.
fn end_of(text: &str, max: usize) -> &str {
    let mut from = text.len().saturating_sub(max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// The first `max` bytes of a text, or fewer.
fn start_of(text: &str, max: usize) -> &str {
    let mut to = max.min(text.len());
    while !text.is_char_boundary(to) {
        to -= 1;
    }
    &text[..to]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_cut() {
        assert_eq!((end_of("aäö", 2), end_of("aäö", 3), end_of("aäö", 9), end_of("", 1)), ("ö", "ö", "aäö", ""));
        assert_eq!(
            (start_of("äöa", 2), start_of("äöa", 3), start_of("äöa", 9), start_of("", 1)),
            ("ä", "ä", "äöa", "")
        );
    }
}
