//! Which trace a request is part of: the headers of W3C's Trace Context.

use axum::http::HeaderMap;

use crate::config::Sampler;

/// Longest `tracestate` that is taken over.
const MAX_STATE: usize = 512;
const SAMPLED: u8 = 1;

/// A span's place in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace_id: u128,
    pub(super) span_id: u64,
    /// The span of whoever has sent the request.
    pub(super) parent: Option<u64>,
    pub(super) state: String,
}

impl Context {
    /// The place of a request's span; `None` if it has none.
    pub(super) fn of(headers: &HeaderMap, sampler: Sampler) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let parent = text("traceparent").and_then(parent);
        let is_in = |trace_id: u128| ((trace_id as u64) as f64) < sampler.ratio * 2f64.powi(64);
        let (trace_id, is_sampled) = match parent {
            Some((trace_id, _, flags)) if sampler.follows_parent => {
                (trace_id, flags & SAMPLED != 0)
            }
            Some((trace_id, ..)) => (trace_id, is_in(trace_id)),
            None => {
                let trace_id = rand::random::<u128>().max(1);
                (trace_id, is_in(trace_id))
            }
        };
        let state = text("tracestate").filter(|state| parent.is_some() && state.len() <= MAX_STATE);
        is_sampled.then(|| Self {
            trace_id,
            span_id: rand::random::<u64>().max(1),
            parent: parent.map(|(_, span_id, _)| span_id),
            state: state.unwrap_or_default().to_owned(),
        })
    }
}

/// Trace, span and flags of a `traceparent`.
fn parent(text: &str) -> Option<(u128, u64, u8)> {
    let mut parts = text.trim().split('-');
    let mut next = |len: usize| {
        let is_hex = |part: &&str| {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            part.len() == len && part.bytes().all(is_digit)
        };
        parts.next().filter(is_hex)
    };
    let version = u8::from_str_radix(next(2)?, 16).ok()?;
    let trace_id = u128::from_str_radix(next(32)?, 16).ok()?;
    let span_id = u64::from_str_radix(next(16)?, 16).ok()?;
    let flags = u8::from_str_radix(next(2)?, 16).ok()?;
    // Later versions may have more.
    let is_whole = version != 0 || parts.next().is_none();
    let is_valid = version != 0xff && trace_id != 0 && span_id != 0 && is_whole;
    is_valid.then_some((trace_id, span_id, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: Sampler = Sampler {
        follows_parent: true,
        ratio: 1.0,
    };

    fn of(traceparent: &str, sampler: Sampler) -> Option<Context> {
        let mut headers = HeaderMap::new();
        if let Ok(value) = traceparent.parse() {
            headers.insert("traceparent", value);
        }
        headers.insert("tracestate", axum::http::HeaderValue::from_static("a=b"));
        Context::of(&headers, sampler)
    }

    #[test]
    fn the_parent_decides() {
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = of(sampled, PARENT).map(|context| Context {
            span_id: 1,
            ..context
        });
        let expected = Context {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span_id: 1,
            parent: Some(0xb7ad_6b71_6920_3331),
            state: "a=b".to_owned(),
        };
        assert_eq!(context, Some(expected));
        let unsampled = sampled.replace("-01", "-00");
        assert_eq!(of(&unsampled, PARENT), None);
        let ratio = |ratio, follows_parent| Sampler {
            follows_parent,
            ratio,
        };
        assert_eq!(of(sampled, ratio(0.0, false)), None);
        assert!(of(sampled, ratio(0.0, true)).is_some());
        assert!(of(&unsampled, ratio(1.0, false)).is_some());
        // 0x8448… is above the half.
        assert_eq!(of(sampled, ratio(0.5, false)), None);
        assert!(of(sampled, ratio(0.6, false)).is_some());
        assert_eq!(of("", ratio(0.0, true)), None);
    }

    #[test]
    fn what_is_no_traceparent_begins_a_new_trace() {
        for text in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let context = of(text, PARENT);
            let is_new = |context: &Context| context.parent.is_none() && context.state.is_empty();
            assert!(context.as_ref().is_some_and(is_new), "{text}: {context:?}");
        }
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x";
        assert!(of(later, PARENT).is_some_and(|context| context.parent.is_some()));
    }
}
