//! Trace context as the W3C writes it (<https://www.w3.org/TR/trace-context/>): a `traceparent` travels with a batch from
//! its caller to the coordinator, with each job to a worker, and back with its answer.
//!
//! Without the feature `otlp` it is passed on as it came, so that the logs of all parts can be joined by its trace id. With
//! it, each part that is told where to send spans puts its own span in between.

use std::fmt;
use std::str::FromStr;

/// Name of the header, in HTTP and in NATS.
pub const HEADER: &str = "traceparent";

/// Which trace, and which span of it is the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: u128,
    pub span_id: u64,
    pub flags: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not of the form 00-<32 hexadecimal digits>-<16>-<2>")]
pub struct NotATraceparent;

impl FromStr for TraceContext {
    type Err = NotATraceparent;

    /// Later versions may say more after the flags; this much of them stays.
    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        let mut parts = text.trim().split('-');
        let mut hex = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NotATraceparent)?;
            let plain = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            part.bytes().all(plain).then_some(part).ok_or(NotATraceparent)
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let context = TraceContext {
            trace_id: u128::from_str_radix(trace_id, 16).map_err(|_| NotATraceparent)?,
            span_id: u64::from_str_radix(span_id, 16).map_err(|_| NotATraceparent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| NotATraceparent)?,
        };
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        (known && context.trace_id != 0 && context.span_id != 0).then_some(context).ok_or(NotATraceparent)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

impl TraceContext {
    /// What a caller sent, if it is a context at all: a broken one is as good as none.
    pub fn of(traceparent: Option<&str>) -> Option<TraceContext> {
        traceparent?.parse().ok()
    }

    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// The header of a message that carries this context, for those who look at messages from outside.
pub fn header(traceparent: Option<&str>) -> Vec<(String, String)> {
    traceparent.map(|text| (HEADER.to_owned(), text.to_owned())).into_iter().collect()
}

/// Makes `span` a part of the trace that caused it.
#[cfg(feature = "otlp")]
pub fn link(span: &tracing::Span, cause: Option<TraceContext>) {
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    let Some(cause) = cause else { return };
    let remote = SpanContext::new(
        TraceId::from_bytes(cause.trace_id.to_be_bytes()),
        SpanId::from_bytes(cause.span_id.to_be_bytes()),
        TraceFlags::new(cause.flags),
        true,
        TraceState::default(),
    );
    // It fails only where nothing is exported.
    let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
}

/// The context of a span that is exported.
#[cfg(feature = "otlp")]
pub fn context_of(span: &tracing::Span) -> Option<TraceContext> {
    use opentelemetry::trace::TraceContextExt;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    let context = span.context();
    let found = context.span().span_context().clone();
    found.is_valid().then(|| TraceContext {
        trace_id: u128::from_be_bytes(found.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(found.span_id().to_bytes()),
        flags: found.trace_flags().to_u8(),
    })
}

#[cfg(not(feature = "otlp"))]
pub fn link(_span: &tracing::Span, _cause: Option<TraceContext>) {}

/// Without the feature no span is exported.
#[cfg(not(feature = "otlp"))]
pub fn context_of(_span: &tracing::Span) -> Option<TraceContext> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(context.flags, 1);
        // A later version may say more.
        let later = format!("cc{}-more", &EXAMPLE[2..]);
        assert_eq!(later.parse(), Ok(context));
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let zero_trace = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let zero_span = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        let upper = EXAMPLE.to_uppercase();
        let longer = format!("{EXAMPLE}-more");
        let forbidden = format!("ff{}", &EXAMPLE[2..]);
        for text in ["", "00-x", zero_trace, zero_span, &upper, &longer, &forbidden, &EXAMPLE[1..], "00-é"] {
            assert_eq!(text.parse::<TraceContext>(), Err(NotATraceparent), "{text}");
        }
    }
}
